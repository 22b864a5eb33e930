package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
	"github.com/pgsteer/pgsteer/pkg/stats"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// watched is a node that serves, with another one that does not, and two poolers
// that work.
func watched() *stats.Snapshot {
	begin := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	s := &stats.Snapshot{
		Node: "lb1", Now: begin.Add(time.Hour),
		Datapath: lb.DatapathStats{Audit: lb.Audit{Flows: 10, Capacity: 200}, Verdicts: []lb.VerdictCount{{Name: "tx_rst_table_full"}}},
		Routers: []vrrp.Snapshot{{
			Name: "main", VRID: 51, State: vrrp.Active, Since: begin, Reason: "lb2 resigned", Lease: time.Second,
			Source: netip.MustParseAddr("192.168.1.10"), Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.100/32")},
		}},
		Sync: &flowsync.Status{
			Connected: true, Peer: "192.168.1.11:5480", PeerNode: "lb2", Heard: 50 * time.Millisecond,
			PeerState: &flowsync.State{Node: "lb2", Routers: []flowsync.RouterState{{Name: "main", VRID: 51, State: "backup"}}},
		},
	}
	for _, name := range []string{"pooler1", "pooler2"} {
		s.Backends = append(s.Backends, lb.BackendStatus{
			Service: "postgres", Name: name, Addr: netip.MustParseAddrPort("192.168.1.5:6432"), State: lb.Up, Since: begin, Healthy: true, HealthReason: "ok",
		})
		s.Checks = append(s.Checks, health.TargetStatus{Service: "postgres", Backend: name, Known: true, Up: true})
	}
	return s
}

func down(b *lb.BackendStatus) {
	b.State, b.Healthy, b.HealthReason = lb.Down, false, "connection refused"
}

// bad returns the facts that are trouble, with their reasons, and those that are
// not known.
func bad(facts []notify.Fact) (trouble, unknown []string) {
	for _, f := range facts {
		switch {
		case f.Unknown:
			unknown = append(unknown, f.Key)
		case f.Bad:
			trouble = append(trouble, f.Key+" "+f.Value+" ("+f.Reason+")")
		}
	}
	return trouble, unknown
}

// TestWatcher breaks one thing after the other.
func TestWatcher(t *testing.T) {
	for _, tt := range []struct {
		name        string
		change      func(*stats.Snapshot)
		trouble     []string
		unknown     []string
		holder      string
		silent      bool
		titleOf     string
		wantInTitle string
	}{
		{name: "all is well", change: func(*stats.Snapshot) {}, holder: "lb1", titleOf: "vip/main", wantInTitle: "lb1 serves 192.168.1.100 (virtual router main)"},
		{
			name: "a pooler is down", change: func(s *stats.Snapshot) { down(&s.Backends[1]) }, holder: "lb1",
			trouble: []string{"backend/postgres/pooler2 down (connection refused)"},
			titleOf: "backend/postgres/pooler2", wantInTitle: "Pooler pooler2 of service postgres (192.168.1.5:6432) is down",
		},
		{
			name: "all are", holder: "lb1", change: func(s *stats.Snapshot) { down(&s.Backends[0]); down(&s.Backends[1]) },
			trouble: []string{
				"backend/postgres/pooler1 down (connection refused)", "backend/postgres/pooler2 down (connection refused)",
				"service/postgres none (pooler1 is down, pooler2 is down)",
			},
		},
		{
			name: "one is in maintenance", holder: "lb1", change: func(s *stats.Snapshot) {
				down(&s.Backends[1])
				s.Backends[1].State, s.Backends[1].Admin = lb.Maintenance, lb.AdminMaint
			}, unknown: []string{"backend/postgres/pooler2"},
		},
		{
			name: "nothing was checked yet", holder: "lb1", change: func(s *stats.Snapshot) {
				for i := range s.Backends {
					down(&s.Backends[i])
					s.Checks[i].Known = false
				}
			}, unknown: []string{"backend/postgres/pooler1", "backend/postgres/pooler2", "service/postgres"},
		},
		{
			name: "the other node holds the address", holder: "lb2", silent: true, change: func(s *stats.Snapshot) {
				s.Routers[0].State, s.Routers[0].Lease, s.Sync.PeerState.Routers[0].Leased = vrrp.Backup, 0, true
			},
		},
		{
			name: "nobody is known to hold it", silent: true, unknown: []string{"vip/main"}, change: func(s *stats.Snapshot) {
				s.Routers[0].State, s.Routers[0].Lease = vrrp.Backup, 0
			},
		},
		{
			name: "nobody can", holder: "nobody", silent: true, change: func(s *stats.Snapshot) {
				s.Routers[0].State, s.Routers[0].Lease, s.Routers[0].Fault = vrrp.Init, 0, "no link"
				s.Sync.PeerState.Routers[0].State = "init"
			}, trouble: []string{"vip/main nobody (no link)"},
		},
		{
			name: "both do", holder: "lb1", change: func(s *stats.Snapshot) { s.Sync.PeerState.Routers[0].Leased = true },
			trouble: []string{"split/main two (lb2 says that it is active, too)"},
		},
		{
			name: "both do, as of before a move", holder: "lb1", change: func(s *stats.Snapshot) {
				s.Sync.PeerState.Routers[0].Leased, s.Routers[0].Since = true, s.Now.Add(-500*time.Millisecond)
			},
		},
		{
			name: "another one was seen to be active", holder: "lb1", change: func(s *stats.Snapshot) {
				s.Routers[0].Contentions, s.Routers[0].Peer.Address = 1, netip.MustParseAddr("192.168.1.12")
			}, trouble: []string{"split/main two (another node was seen to be active beside this one, 192.168.1.12)"},
		},
		{
			name: "the table is nearly full", holder: "lb1", change: func(s *stats.Snapshot) { s.Datapath.Audit.Flows = 91 },
			trouble: []string{"table full (91 of 100 connections)"},
		},
		{
			name: "clients were refused", holder: "lb1", change: func(s *stats.Snapshot) { s.Datapath.Verdicts[0].Count = 3 },
			trouble: []string{"table full (10 of 100 connections; clients were refused)"},
		},
		{
			name: "the counts drift", holder: "lb1", change: func(s *stats.Snapshot) { s.Datapath.Audit.Drift = 2 },
			trouble: []string{"drift drift (by 2)"},
		},
		{
			name: "the datapath cannot be read", holder: "lb1", change: func(s *stats.Snapshot) { s.DatapathErr = errors.New("odd") },
			unknown: []string{"table", "drift"},
		},
		{
			name: "the link has just gone", holder: "lb1", change: func(s *stats.Snapshot) { s.Sync.Connected = false },
			unknown: []string{"sync"},
		},
		{
			name: "without replication", holder: "lb1", change: func(s *stats.Snapshot) { s.Sync = nil },
		},
		{
			name: "a backup without replication", holder: "192.168.1.11", silent: true, change: func(s *stats.Snapshot) {
				s.Sync, s.Routers[0].State, s.Routers[0].Lease = nil, vrrp.Backup, 0
				s.Routers[0].Peer = vrrp.Peer{Address: netip.MustParseAddr("192.168.1.11"), Priority: 100}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := watched()
			tt.change(s)
			facts, speaks := newWatcher().look(s)
			trouble, unknown := bad(facts)
			if !slices.Equal(trouble, tt.trouble) || !slices.Equal(unknown, tt.unknown) || speaks == tt.silent {
				t.Errorf("trouble %q, unknown %q, speaks %v", trouble, unknown, speaks)
			}
			for _, f := range facts {
				if f.Key == "vip/main" && f.Value != tt.holder {
					t.Errorf("held by %q, want %q", f.Value, tt.holder)
				}
				if f.Key == tt.titleOf && f.Title != tt.wantInTitle {
					t.Errorf("the title of %s is %q", f.Key, f.Title)
				}
				if !f.Unknown && (f.Since.IsZero() || f.Title == "" || f.Kind == "" || f.Severity == "") {
					t.Errorf("incomplete: %+v", f)
				}
			}
		})
	}
}

// TestWatcherMemory is what takes more than one look.
func TestWatcherMemory(t *testing.T) {
	s, w := watched(), newWatcher()
	look := func(after time.Duration) []string {
		s.Now = s.Now.Add(after)
		facts, _ := w.look(s)
		trouble, _ := bad(facts)
		return trouble
	}
	expect := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("at first", look(0))
	s.Sync.Connected, s.Sync.LastError = false, "connection refused"
	expect("the link has gone", look(time.Second))
	expect("for less than three seconds", look(2*time.Second))
	expect("for three", look(time.Second), "sync lost (connection refused)")
	s.Sync.Connected = true
	expect("it is back", look(time.Second))

	s.Routers[0].Contentions = 1
	if got := look(time.Second); len(got) != 1 {
		t.Errorf("a contention: %q", got)
	}
	if got := look(59 * time.Second); len(got) != 1 {
		t.Errorf("59 s later: %q", got)
	}
	expect("a minute later", look(time.Second))

	s.Datapath.Audit.Flows = 95
	expect("nearly full", look(time.Second), "table full (95 of 100 connections)")
	s.Datapath.Audit.Flows = 85
	expect("not much less", look(time.Second), "table full (85 of 100 connections)")
	s.Datapath.Audit.Flows = 79
	expect("with room", look(time.Second))

	// A node that starts alone is given time to find the other one.
	w = newWatcher()
	s.Sync.Connected, s.Routers[0].Contentions = false, 0
	expect("after the start", look(time.Second))
	expect("still", look(9*time.Second))
	expect("ten seconds later", look(time.Second), "sync lost (connection refused)")
}

// TestSpeaker has two virtual routers that two nodes share.
func TestSpeaker(t *testing.T) {
	const a, b, i = vrrp.Active, vrrp.Backup, vrrp.Init
	for _, tt := range []struct {
		ours   [2]vrrp.State
		theirs [2]bool // what the other node says that it serves
		want   bool
	}{
		{[2]vrrp.State{a, a}, [2]bool{}, true},
		{[2]vrrp.State{a, b}, [2]bool{false, true}, true},
		{[2]vrrp.State{b, a}, [2]bool{true, false}, false},
		{[2]vrrp.State{b, b}, [2]bool{}, false},
		{[2]vrrp.State{i, a}, [2]bool{true, false}, false},
		{[2]vrrp.State{i, a}, [2]bool{false, false}, true},
		{[2]vrrp.State{i, i}, [2]bool{}, false},
	} {
		s := watched()
		second := s.Routers[0]
		second.Name, second.VRID = "second", 52
		s.Routers = append(s.Routers, second)
		peer := s.Sync.PeerState
		peer.Routers = append(peer.Routers, flowsync.RouterState{Name: "second", VRID: 52})
		for n := range 2 {
			s.Routers[n].State, peer.Routers[n].Leased = tt.ours[n], tt.theirs[n]
		}
		if got := speaker(s); got != tt.want {
			t.Errorf("%v, the other node %v: speaks %v", tt.ours, tt.theirs, got)
		}
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, open := write("good", "https://example.com/word\n", 0o600), write("open", "word", 0o644)
	write("slack-url", "word", 0o440)
	for _, tt := range []struct {
		name        string
		from        config.Secret
		credentials string
		want        string
	}{
		{"a file", config.Secret{File: good}, "", ""},
		{"a credential", config.Secret{Credential: "slack-url"}, dir, ""},
		{"a file for everybody", config.Secret{File: open}, "", "reading the URL: " + open + " is open to group or others (mode 0644); run: chmod 600 " + open},
		{"no file", config.Secret{File: filepath.Join(dir, "none")}, "", "reading the URL: open " + filepath.Join(dir, "none") + ": no such file or directory"},
		{"no credentials", config.Secret{Credential: "slack-url"}, "", "reading the URL: systemd handed no credential slack-url over; see LoadCredential= of pgsteerd's unit"},
		{"nothing in it", config.Secret{File: write("empty", "\n", 0o600)}, "", "reading the URL: " + filepath.Join(dir, "empty") + " is empty"},
		{"two lines", config.Secret{File: write("two", "word\nword", 0o600)}, "", "reading the URL: " + filepath.Join(dir, "two") + " has more than one line"},
		{"too much", config.Secret{File: write("much", strings.Repeat("word", 2000), 0o600)}, "", "reading the URL: " + filepath.Join(dir, "much") + " is larger than 4096 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := readSecret("the URL", tt.from, tt.credentials)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestSaidCrosses: the heartbeat has what people were told.
func TestSaidCrosses(t *testing.T) {
	r := &replication{checks: func() []health.TargetStatus { return nil }}
	if s := r.state(); s.Said != nil {
		t.Errorf("nobody is told, and yet %s", s.Said)
	}
	r.said = func() json.RawMessage { return json.RawMessage(`{"version":1}`) }
	if s := r.state(); string(s.Said) != `{"version":1}` {
		t.Errorf("it says %s", s.Said)
	}
}
