package stats

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

func render(t *testing.T, s Snapshot, noRefresh bool) string {
	t.Helper()
	var b strings.Builder
	if err := writePage(&b, &s, noRefresh); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// text is a page without tags and with single spaces, to look for words in.
func text(html string) string {
	var b strings.Builder
	for i, piece := range strings.Split(html, "<") {
		if i > 0 {
			_, piece, _ = strings.Cut(piece, ">")
		}
		b.WriteString(piece + " ")
	}
	return strings.Join(strings.Fields(strings.ReplaceAll(b.String(), "\u2009", "")), " ")
}

func TestPage(t *testing.T) {
	page := render(t, sample(), false)
	if path := os.Getenv("PGSTEER_TEST_PAGE"); path != "" { // to look at it
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if len(page) > 50<<10 {
		t.Errorf("page has %d bytes", len(page))
	}
	words := text(page)
	for _, want := range []string{
		"statistics report for pid 4711",
		"Uptime 1d1h", "XDP mode native", "Active connections 1048", "Flow table 1050 of 262144 flows", "Table memory 123 MB", "Count drift 0",
		"192.168.1.100 is owned by this node",
		"main 51 254 active 1h0m 192.168.1.100 287ms 192.168.1.11, 1h0m ago 100 100ms 36000 1234 7 12 1 254",
		"2026-03-04T11:59:00.000Z 1m0s ago main active backup 1 192.168.1.11 100 34ms before told to resign by uid 0 2026-03-04T11:58:00.000Z",
		"2026-03-04T11:50:00.000Z 10m0s ago main backup active 101 nobody silence Replication records of connections Link up for 1h0m Peer lb2 192.168.1.11:5480 Heard 57ms ago Copy up to date Queue 1200 Lag 3ms Bytes sent 9.12 MB Bytes received 98.7 kB Key 9cd7647edd817396",
		"Replication: this node and lb2 have all of each other&#39;s connections Virtual router",
		"Sent Records changes 82012 closed 80969 copied 1043 unfit 0 Received Records changes 0",
		"Full copies sent Times connected 3 overflow 1 Failed connections Times connect 4 key 0",
		"The nodes are configured differently: backend postgres/pooler9 (192.168.1.9:6432) is configured on lb1 only.",
		"postgres 192.168.1.100:5432, leastconn",
		"pooler1 192.168.1.5:6432 1022 4000 41003 41 82 410 20 &lt;128µs &lt;2.05ms 96.2 MB 4.05 GB 1d1h UP postgres: ok in 1.23ms 1 0 0 0s",
		"pooler3 backup 192.168.1.5:6434 0 4000 7 0 0 0 0 &lt;128µs &lt;256µs 16.4 kB 691 kB 4.0s DOWN, passed 1 of 2 postgres: ok in 2ms 1 3 1 4.0s",
		"p6 [2001:db8::5]:6432 5 - 9 0 0 0 0 - - 0 B 0 B",
		"six [2001:db8::100]:5432, random2",
		"1m30s UP, failed 1 of 3 postgres: no answer within 1s in 1.0s 1 12 2 1m15s",
		"4.0s DOWN, passed 1 of 2 postgres: ok in 2ms",
		"1d1h DOWN, no next hop postgres: 57P03 the database system is starting up &lt;b&gt; in 3ms 256 45000 0 1d1h",
		"Sum 1043 82012 82 164 820 40 &lt;128µs &lt;2.05ms 192 MB 8.10 GB 2 of 3 up 3 15 3",
		"Service reports has no backend that is up: new connections are refused.",
		"Dropped Packets drop_fenced 0 drop_ttl 3",
		"Taken at 2026-03-04T12:00:00Z",
	} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is not on the page:\n%s", want, words)
		}
	}
	for _, want := range []string{
		`<tr class="up"><td>pooler1<`, `<tr class="going-down"><td>pooler2<`, `<tr class="going-up"><td>pooler3 <small`, `<tr class="down"><td>reports1<`,
		`<p class="owner active">`, `<td class="n" title="configured 101">254</td>`, `title="ttl 2, vrid 5"`, `title="next hop 02:00:00:00:01:05"`, "title=\"39\u2009981 of them closed\"", "title=\"of 45\u2009000 checks\"", "title=\"96152035 bytes in 492\u2009036 packets\"",
		`<meta http-equiv="refresh" content="5">`, `<a href="?norefresh">`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%s is not in the page", want)
		}
	}
	if strings.Contains(page, "<script") || strings.Contains(page, "ZgotmplZ") {
		t.Error("page holds a script or a value that the template refused")
	}
}

// TestPageOverrides checks that what an operator changed is told from what is
// configured.
func TestPageOverrides(t *testing.T) {
	s := sample()
	st := &s.Backends[0]
	st.By, st.Weight, st.ConfiguredWeight, st.MaxConnections, st.ConfiguredMaxConnections = "uid 1000", 5, 1, 0, 4000
	b := &s.Datapath.Services[0].Backends[0]
	b.Weight, b.Limit = 5, 0
	page := render(t, s, false)
	for _, want := range []string{
		`<td class="n" title="configured 1, changed by uid 1000">5*</td>`,
		`<td class="n" title="configured 4000, changed by uid 1000">-*</td>`,
	} {
		if strings.Count(page, want) != 1 {
			t.Errorf("%s is not in the page once", want)
		}
	}
}

func TestPageWithoutRefresh(t *testing.T) {
	page := render(t, sample(), true)
	if strings.Contains(page, "http-equiv") || !strings.Contains(page, `<a href="/status">`) {
		t.Error("page refreshes itself, or cannot be made to")
	}
}

// TestPageEscapes checks that text from outside cannot become markup.
func TestPageEscapes(t *testing.T) {
	const evil = `"><img src=x onerror=alert(1)>`
	s := sample()
	s.Node, s.Version, s.Interface = evil, evil, evil
	s.Datapath.Services[0].Name, s.Backends[0].Service, s.Checks[0].Service = evil, evil, evil
	s.Datapath.Services[0].Backends[0].Name, s.Backends[0].Name, s.Checks[0].Backend = evil, evil, evil
	s.Datapath.Services[0].Backends[0].MAC = evil
	s.Datapath.Verdicts[0].Name, s.Datapath.Verdicts[0].Action = evil, evil
	s.Backends[0].Reason, s.Checks[0].LastResult, s.Checks[0].CheckName = evil, evil, evil
	s.Routers[0].Name, s.Routers[0].Reason, s.Routers[0].Refused[0].Reason = evil, evil, evil
	s.Routers[0].Gate, s.Routers[0].Fault, s.Routers[0].History[11].Reason = evil, evil, evil
	s.Sync.PeerNode, s.Sync.LastError, s.Sync.Differences[0] = evil, evil, evil
	page := render(t, s, false)
	if strings.Contains(page, "<img") || strings.Contains(page, evil) {
		t.Errorf("markup got through:\n%s", page)
	}
	if n := strings.Count(page, "alert(1)"); n < 19 {
		t.Errorf("only %d of the places show the text", n)
	}
}

func TestPageWithoutDatapath(t *testing.T) {
	s := sample()
	s.Datapath, s.DatapathErr = lb.DatapathStats{}, errors.New("reading the flow table: odd")
	words := text(render(t, s, false))
	for _, want := range []string{"The tables of the XDP program cannot be read: reading the flow table: odd", "active 1h0m 192.168.1.100 unknown"} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is not on the page: %s", want, words)
		}
	}
	if strings.Contains(words, "Count drift") {
		t.Error("page shows counts that could not be read")
	}
}

// TestPageSync checks what the page says of a replication that does not work,
// and that it says nothing of none.
func TestPageSync(t *testing.T) {
	for _, tt := range []struct {
		change func(*Snapshot)
		want   []string
	}{
		{func(s *Snapshot) { s.Sync.Connected = false; s.Sync.Since = now.Add(-4 * time.Second) }, []string{
			"no connection to lb2, 192.168.1.11:5480: a failover ends connections", "Link down for 4.0s",
		}},
		{func(s *Snapshot) { *s.Sync = flowsync.Status{Peer: "192.168.1.11:5480", Heard: -1, CopyAge: -1} }, []string{
			"no connection to the other node, 192.168.1.11:5480", "Peer 192.168.1.11:5480 Heard never Copy none Queue 0 Lag 0s",
		}},
		{func(s *Snapshot) { s.Sync.Synced = false; s.Sync.CopyAge = 90 * time.Second }, []string{
			"this node does not have all connections of lb2 yet", "Copy of 1m30s ago",
		}},
		{func(s *Snapshot) { s.Sync.Differences = slices.Repeat(s.Sync.Differences, 8) }, []string{"There are 3 more differences: see pgsteer sync show."}},
		{func(s *Snapshot) { s.Sync.PeerSynced = false }, []string{"lb2 does not have all connections of this node yet"}},
		{func(s *Snapshot) { s.Routers[0].Fault, s.Routers[0].CutOff = "link: down", true }, []string{
			"Virtual router main stays out of the election: link: down.",
			"Virtual router main must not become active: this node seems to be cut off.",
		}},
	} {
		s := sample()
		tt.change(&s)
		words := text(render(t, s, false))
		for _, want := range tt.want {
			if !strings.Contains(words, want) {
				t.Errorf("%q is not on the page: %s", want, words)
			}
		}
	}
	s := sample()
	s.Sync, s.Routers[0].History = nil, nil
	if words := text(render(t, s, false)); strings.Contains(words, "Replication") || strings.Contains(words, "Moves") {
		t.Errorf("the page has parts for what is not there: %s", words)
	}
}

func TestRowClasses(t *testing.T) {
	base := sample()
	tests := []struct {
		state       lb.State
		known, up   bool
		consecutive int
		class, word string
	}{
		{lb.Down, false, false, 0, "unchecked", "not checked"},
		{lb.Down, true, false, 0, "down", "DOWN"},
		{lb.Down, true, false, 1, "going-up", "DOWN, passed 1 of 2"},
		{lb.Up, true, true, 0, "up", "UP"},
		{lb.Up, true, true, 2, "going-down", "UP, failed 2 of 3"},
		{lb.Draining, true, true, 2, "draining", "DRAIN"},
		{lb.Maintenance, true, false, 1, "maint", "MAINT"},
	}
	for _, tt := range tests {
		c := base.Checks[0]
		c.Known, c.Up, c.Consecutive = tt.known, tt.up, tt.consecutive
		if class, word := class(tt.state, c, true), statusWord(tt.state, c, true); class != tt.class || word != tt.word {
			t.Errorf("%+v: got %q, %q", tt, class, word)
		}
	}
}

func TestOwner(t *testing.T) {
	peer := netip.MustParseAddr("192.168.1.11")
	interval := 100 * time.Millisecond
	tests := []struct {
		name  string
		state vrrp.State
		peer  vrrp.Peer
		want  string
	}{
		{"active", vrrp.Active, vrrp.Peer{}, "is owned by this node"},
		{"init", vrrp.Init, vrrp.Peer{}, "is not served by this node: the virtual router is not running"},
		{"alone", vrrp.Backup, vrrp.Peer{}, "is not owned by this node; no other node is heard"},
		{"silent peer", vrrp.Backup, vrrp.Peer{Address: peer, Priority: 100, AdvertInterval: interval, Ago: 401 * time.Millisecond}, "is not owned by this node; no other node is heard"},
		{"slow peer", vrrp.Backup, vrrp.Peer{Address: peer, Priority: 100, AdvertInterval: time.Second, Ago: 999 * time.Millisecond}, "is owned by 192.168.1.11; this node is the backup"},
		{"peer", vrrp.Backup, vrrp.Peer{Address: peer, Priority: 100, AdvertInterval: interval, Ago: 99 * time.Millisecond}, "is owned by 192.168.1.11; this node is the backup"},
		{"resigned", vrrp.Backup, vrrp.Peer{Address: peer, AdvertInterval: interval}, "is being given up by 192.168.1.11"},
	}
	for _, tt := range tests {
		if got := owner(vrrp.Snapshot{State: tt.state, AdvertInterval: interval, Peer: tt.peer}); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9995: "10.0 kB", 99949: "99.9 kB", 99950: "100 kB", 999499: "999 kB",
		999500: "1.00 MB", 1e9: "1.00 GB", 1e15: "1.00 PB", 18446744073709551615: "18.4 EB",
	} {
		if got := size(n).String(); got != want {
			t.Errorf("size %d: got %s, want %s", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1_000", -1234567: "-1_234_567", 100000: "100_000"} {
		if got := strings.ReplaceAll(grouped(n), "\u2009", "_"); got != want {
			t.Errorf("grouped %d: got %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 1: "1ns", 1500: "2µs", 1234567: "1.23ms", 37 * time.Millisecond: "37ms", 999 * time.Millisecond: "999ms", 999999999: "1.0s", 4200 * time.Millisecond: "4.2s",
		59 * time.Second: "59s", 90 * time.Second: "1m30s", time.Hour: "1h0m", 25*time.Hour + time.Minute: "1d1h", -time.Second: "-1.0s",
	} {
		if got := brief(d); got != want {
			t.Errorf("brief %d: got %s, want %s", d, got, want)
		}
	}
}
