package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// unheld is how long nobody holds the lease in a move of the fakes.
const unheld = 8 * time.Millisecond

// A pair is two nodes as the first of them sees them: it is both a link and the
// virtual routers main, which is the active one's, and second, a backup.
type pair struct {
	mu      sync.Mutex
	routers [2]vrrp.Snapshot
	status  flowsync.Status
	moved   time.Time // of main
	deaf    bool      // the other node does not do its part
}

// A pairRouter is one of the pair's.
type pairRouter struct {
	*pair
	i int
}

func newPair() *pair {
	at := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	peer := vrrp.Peer{Address: netip.MustParseAddr("192.168.1.11"), Priority: 100, AdvertInterval: 100 * time.Millisecond, Ago: 34 * time.Millisecond}
	router := func(name string, vrid, priority uint8, state vrrp.State, addr string) vrrp.Snapshot {
		return vrrp.Snapshot{
			Name: name, VRID: vrid, Priority: priority, EffectivePriority: priority, State: state, Source: netip.MustParseAddr("192.168.1.10"),
			Peer: peer, Synced: true, Addresses: []netip.Prefix{netip.MustParsePrefix(addr + "/24")},
		}
	}
	p := &pair{
		routers: [2]vrrp.Snapshot{router("main", 51, 101, vrrp.Active, "192.168.1.100"), router("second", 52, 100, vrrp.Backup, "192.168.1.101")},
		status: flowsync.Status{
			Node: "lb1", Listen: "192.168.1.10:5480", Peer: "192.168.1.11:5480", Key: "9cd7647edd817396", PeerKey: "5be0cd19137e2179", PeerNode: "lb2", Connected: true,
			Since: time.Now().Add(-time.Hour), Heard: 57 * time.Millisecond, Synced: true, PeerSynced: true,
			Sent: flowsync.SentCounts{Changes: 40, Bytes: 170779}, Received: flowsync.ReceivedCounts{Stored: 7},
			Resyncs:  []flowsync.Count{{Reason: "connected", Count: 1}, {Reason: "lost"}},
			Failures: []flowsync.Count{{Reason: "connect", Count: 4}, {Reason: "key"}},
		},
	}
	p.routers[0].History = []vrrp.Change{
		{At: at, From: vrrp.Init, To: vrrp.Backup, Reason: "started", Priority: 1},
		{At: at.Add(1500 * time.Millisecond), From: vrrp.Backup, To: vrrp.Active, Reason: "lb2 is silent", Priority: 101, Peer: peer},
	}
	p.routers[1].History = []vrrp.Change{{At: at.Add(time.Second), From: vrrp.Init, To: vrrp.Backup, Reason: "started", Priority: 100}}
	return p
}

func (p *pair) list() []admin.Router {
	return []admin.Router{pairRouter{p, 0}, pairRouter{p, 1}}
}

func (p *pair) Drain(context.Context) error { return nil }

// Status tells of main what is not the first node's.
func (p *pair) Status() flowsync.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	there, age := "backup", time.Hour
	if !p.moved.IsZero() {
		age = time.Since(p.moved) - s.Heard + unheld // given up before ours began
	}
	if p.routers[0].State != vrrp.Active && !p.deaf {
		there, age = "active", time.Since(p.moved)-s.Heard-unheld
	}
	s.PeerState = &flowsync.State{Node: "lb2", Routers: []flowsync.RouterState{
		{Name: "main", VRID: 51, State: there, Age: age}, {Name: "second", VRID: 52, State: "active"},
	}}
	return s
}

func (r pairRouter) Snapshot() vrrp.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.routers[r.i]
}

func (r pairRouter) move(to vrrp.State, priority uint8, gate, reason string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.routers[r.i]
	c := vrrp.Change{At: time.Now(), From: s.State, To: to, Reason: reason, Priority: priority, Peer: s.Peer}
	s.State, s.EffectivePriority, s.Gate, s.Reason, s.History = to, priority, gate, reason, append(s.History, c)
	r.moved = c.At
	return nil
}

func (r pairRouter) Resign(_ context.Context, reason string) error {
	return r.move(vrrp.Backup, 1, "told to resign", reason)
}

func (r pairRouter) Takeover(_ context.Context, reason string) error {
	if r.i == 1 {
		return errors.New("192.168.1.11 advertises priority 254")
	}
	return r.move(vrrp.Active, 254, "", reason)
}

// serveOn has a pair behind a true admin socket.
func (p *pair) serveOn(t *testing.T, replicated bool) (socket string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	cfg := admin.Config{Socket: filepath.Join(t.TempDir(), "admin.sock"), Controller: lb.NewController(new(recorder), log), Routers: p.list, Log: log}
	if replicated {
		cfg.Replication = func() admin.Replication { return p }
		cfg.PeerHistory = func(vrid uint8, v6 bool) []admin.PeerChange {
			if vrid != 51 || v6 {
				return nil
			}
			return []admin.PeerChange{{Node: "lb2", Change: vrrp.Change{
				At: p.routers[0].History[1].At.Add(-100 * time.Millisecond), From: vrrp.Active, To: vrrp.Backup, Reason: "told to resign", Priority: 100,
				Peer: vrrp.Peer{Address: netip.MustParseAddr("192.168.1.10"), Priority: 101, Ago: 20 * time.Millisecond},
			}}}
		}
	}
	server, err := admin.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, server.Close()); err != nil {
			t.Error(err)
		}
	})
	return cfg.Socket
}

// serve is serveOn with a function that runs pgsteer.
func (p *pair) serve(t *testing.T, replicated bool) func(args string) result {
	t.Helper()
	socket := p.serveOn(t, replicated)
	return func(args string) result {
		res := runWith(sample(), nil, "", dialDaemon(socket), strings.Fields(args)...)
		by := fmt.Sprintf("uid %d, pid %d", os.Getuid(), os.Getpid())
		res.stdout = strings.ReplaceAll(res.stdout, by, "uid U, pid P")
		return res
	}
}

func TestVIPs(t *testing.T) {
	pgsteer := newPair().serve(t, true)
	for _, tt := range []struct{ args, want string }{
		{
			"vip show", "ADDRESS        ROUTER  VRID  PRIORITY  STATE     SINCE   LEASE  PEER                                SYNCED\n" +
				"192.168.1.100  main      51       101  active  26h0m3s   287ms  192.168.1.11 priority 100 34ms ago  yes\n" +
				"192.168.1.101  second    52       100  backup    12.3s  silent  192.168.1.11 priority 100 34ms ago  yes\n",
		},
		{
			"vip history", "TIME                      ROUTER  NODE  FROM    TO      PRIORITY  PEER          PEER-PRIORITY  HEARD  REASON\n" +
				"2026-03-04T12:00:00.000Z  main    this  init    backup         1  none                                started\n" +
				"2026-03-04T12:00:01.000Z  second  this  init    backup       100  none                                started\n" +
				"2026-03-04T12:00:01.400Z  main    lb2   active  backup       100  192.168.1.10            101   20ms  told to resign\n" +
				"2026-03-04T12:00:01.500Z  main    this  backup  active       101  192.168.1.11            100   34ms  lb2 is silent\n",
		},
		{
			"vip hi second", "TIME                      ROUTER  NODE  FROM  TO      PRIORITY  PEER  PEER-PRIORITY  HEARD  REASON\n" +
				"2026-03-04T12:00:01.000Z  second  this  init  backup       100  none                        started\n",
		},
		{
			"vip history second -j", `[{"router":"second","node":"","at":"2026-03-04T12:00:01Z","from":"init","to":"backup","reason":"started","priority":100,` +
				`"peer":{"address":"","priority":0,"advert_interval":0,"checksum":"unknown","ago":0}}]` + "\n",
		},
		{
			"vip resign main", "ROUTER  STATE             PRIORITY  PEER                                SYNCED  REASON\n" +
				"main    backup  1 (configured 101)  192.168.1.11 priority 100 34ms ago  yes     told to resign by uid U, pid P\n",
		},
		{ // the pins of the fixture do not know of it
			"vip", "ADDRESS        ROUTER  VRID  PRIORITY  STATE     SINCE   LEASE  PEER                                SYNCED  GATE\n" +
				"192.168.1.100  main      51         1  active  26h0m3s   287ms  192.168.1.11 priority 100 34ms ago  yes     told to resign\n" +
				"192.168.1.101  second    52       100  backup    12.3s  silent  192.168.1.11 priority 100 34ms ago  yes\n",
		},
		{
			"vip takeover main force", "ROUTER  STATE               PRIORITY  PEER                                SYNCED  REASON\n" +
				"main    active  254 (configured 101)  192.168.1.11 priority 100 34ms ago  yes     told to take over by uid U, pid P\n",
		},
	} {
		if res := pgsteer(tt.args); res.status != exitOK || res.stdout != tt.want || res.stderr != "" {
			t.Errorf("pgsteer %s: status %d, %s\n%s\nwant\n%s", tt.args, res.status, res.stderr, res.stdout, tt.want)
		}
	}
	var v []map[string]any
	if err := json.Unmarshal([]byte(pgsteer("vip -j").stdout), &v); err != nil || v[0]["gate"] != "" || v[0]["peer"].(map[string]any)["address"] != "192.168.1.11" {
		t.Errorf("%v: %v", v, err)
	}
	var r admin.RouterStatus
	if err := json.Unmarshal([]byte(pgsteer("vip resign main -j").stdout), &r); err != nil || r.Name != "main" || r.State != vrrp.Backup || len(r.History) != 5 {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestVIPErrors(t *testing.T) {
	p := newPair()
	p.status.PeerSynced = false
	pgsteer := p.serve(t, true)
	for args, want := range map[string]string{
		"vip resign":            "which virtual router? There is main, second",
		"vip resign force":      "which virtual router? There is main, second",
		"vip resign man":        `no virtual router "man"; did you mean main?`,
		"vip resign main":       "not now: lb2 has no full copy of the connections; force resigns all the same",
		"vip takeover second":   "192.168.1.11 advertises priority 254",
		"vip history x":         `no virtual router "x"; there is main, second`,
		"vip rehearse main":     "not rehearsed: lb2 has no full copy of the connections",
		"vip rehearse second":   "not rehearsed: second is backup on this node, and only the active node can rehearse",
		"vip resign main later": `vip resign: nothing may follow the virtual router, but "later" was given`,
		"vip history a b":       `vip history: nothing may follow the virtual router, but "b" was given`,
		"vip re main":           `command "re" is ambiguous: resign or rehearse`,
	} {
		if res := pgsteer(args); res.status == exitOK || res.stderr != "pgsteer: "+want+"\n" || res.stdout != "" {
			t.Errorf("pgsteer %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
	// With only one virtual router it need not be named.
	one := &oneRouter{fakeDaemon: new(fakeDaemon)}
	if res := runWith(nil, nil, "", one, "vip", "resign", "force"); res.status != exitOK || one.told != "only true" {
		t.Errorf("status %d, %q, %s%s", res.status, one.told, res.stdout, res.stderr)
	}
	if res := runWith(nil, nil, "", new(fakeDaemon), "vip", "takeover"); res.stderr != "pgsteer: there is no virtual router\n" {
		t.Errorf("status %d, %s", res.status, res.stderr)
	}
	// What the pins have is shown whatever the daemon does.
	res := runWith(sample(), nil, "", &fakeDaemon{err: errors.New("odd")}, "vip")
	if res.status != exitOK || !strings.HasSuffix(res.stdout, "silent\nWithout what pgsteerd knows: odd\n") {
		t.Errorf("status %d, %s%s", res.status, res.stdout, res.stderr)
	}
}

// oneRouter is a daemon with one virtual router.
type oneRouter struct {
	*fakeDaemon
	told string
}

func (d *oneRouter) Routers(context.Context) ([]admin.RouterStatus, error) {
	return []admin.RouterStatus{{Snapshot: vrrp.Snapshot{Name: "only"}}}, nil
}

func (d *oneRouter) Resign(_ context.Context, router string, m admin.Move) (admin.RouterStatus, error) {
	d.told = fmt.Sprint(router, " ", m.Force)
	return admin.RouterStatus{}, nil
}

func TestRehearse(t *testing.T) {
	p := newPair()
	pgsteer := p.serve(t, true)
	res := pgsteer("vip rehearse main")
	want := regexp.MustCompile(`^MOVE      FROM  TO   TOOK  HELD-BY-NOBODY
resign    lb1   lb2  *\d+m?s  *\d+ms
takeover  lb2   lb1  *\d+m?s  *\d+ms

SERVICE   BEFORE  AWAY  AFTER  AGREE
postgres      43    43     43  yes
$`)
	if res.status != exitOK || !want.MatchString(res.stdout) {
		t.Errorf("status %d, %s%s", res.status, res.stdout, res.stderr)
	}
	var r rehearsal
	if err := json.Unmarshal([]byte(pgsteer("vip rehearse main -j").stdout), &r); err != nil {
		t.Fatal(err)
	}
	// What is measured is a moment more or less, by how long an answer took.
	const slack = 5 * time.Millisecond
	for _, m := range []rehearsedMove{r.Resign, r.Takeover} {
		if m.Unheld < unheld-slack || m.Unheld > unheld+slack {
			t.Errorf("held by nobody for %v, which was %v", m.Unheld, unheld)
		}
	}
	if len(r.Services) != 1 || r.Services[0] != (tally{"postgres", 43, 43, 43}) || !r.Agree || r.Router != "main" {
		t.Errorf("got %+v", r)
	}
	h := p.routers[0].History
	if len(h) != 6 || !strings.HasPrefix(h[2].Reason, "rehearsal (told to resign by ") || h[5].To != vrrp.Active {
		t.Errorf("the history is %+v", h)
	}
}

// TestRehearseInterrupted ends a rehearsal whose other node does not take over.
func TestRehearseInterrupted(t *testing.T) {
	p := newPair()
	p.deaf = true
	socket := p.serveOn(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var stderr strings.Builder
	tl := tool{
		stdout: io.Discard, stderr: &stderr, dial: dialDaemon,
		getenv: func(string) string { return "" },
		open:   func(string) (reader, error) { return sample(), nil },
	}
	status := tl.run(ctx, []string{"vip", "rehearse", "main", "--socket", socket})
	const want = "pgsteer: interrupted; lb2 may have the addresses now: pgsteer vip takeover main brings them back\n"
	if status != exitFailure || stderr.String() != want {
		t.Errorf("status %d, %s", status, stderr.String())
	}
}
