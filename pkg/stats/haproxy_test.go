package stats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// haproxyConfig is what both have: two poolers, of which a third one is the
// backup, checked three times a second.
const haproxyConfig = `global
    stats socket %[1]s/haproxy.sock mode 600 level admin
defaults
    mode tcp
    timeout connect 1s
    timeout client 10s
    timeout server 10s
frontend stats
    mode http
    bind 127.0.0.1:8404
    stats enable
    stats uri /stats
listen postgres
    bind 127.0.0.1:5432
    balance leastconn
    default-server check inter 300 fall 3 rise 2
    server pooler1 127.0.0.1:6432 weight 3 maxconn 100
    server pooler2 127.0.0.1:6433 weight 1
    server pooler3 127.0.0.1:6434 weight 1 backup
`

// A pooler is a port that accepts, or does not.
type pooler struct {
	addr string
	l    net.Listener
}

func (p *pooler) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.l = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
}

func (p *pooler) stop(t *testing.T) {
	t.Helper()
	if err := p.l.Close(); err != nil {
		t.Fatal(err)
	}
}

// A rack is a datapath that only keeps what it is told.
type rack struct {
	mu       sync.Mutex
	services []lb.Service
}

func (r *rack) SetServices(s []lb.Service) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.services = s
	return nil
}

func (r *rack) SetBackend(service string, b lb.Backend) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.services {
		for i := range s.Backends {
			if s.Name == service && s.Backends[i].Name == b.Name {
				s.Backends[i] = b
			}
		}
	}
	return nil
}

func (r *rack) ResetFlows(string, string) error { return nil }

func (r *rack) stats() (d lb.DatapathStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.services {
		out := lb.ServiceStats{Name: s.Name, Addr: s.Addr, Scheduler: s.Scheduler}
		for _, b := range s.Backends {
			out.Backends = append(out.Backends, lb.BackendStats{Name: b.Name, Addr: b.Addr, State: b.State, Weight: b.Weight, Limit: b.MaxConnections, Backup: b.Backup})
		}
		d.Services = append(d.Services, out)
	}
	return d
}

// ours starts checks, controller and stats server of ours at the address.
func ours(t *testing.T, listen string) (*lb.Controller, Runtime) {
	t.Helper()
	dp := new(rack)
	controller := lb.NewController(dp, discard)
	service := lb.Service{Name: "postgres", Addr: netip.MustParseAddrPort("127.0.0.1:5432")}
	var targets []health.Target
	for i, weight := range []uint16{3, 1, 1} {
		b := lb.Backend{Name: fmt.Sprint("pooler", i+1), Addr: netip.MustParseAddrPort(fmt.Sprint("127.0.0.1:", 6432+i)), Weight: weight, Backup: i == 2}
		if i == 0 {
			b.MaxConnections = 100
		}
		service.Backends = append(service.Backends, b)
		targets = append(targets, health.Target{
			Service: "postgres", Backend: b.Name, Addr: b.Addr, Check: health.TCP(), CheckName: "tcp",
			Interval: 300 * time.Millisecond, FastInterval: 300 * time.Millisecond, Timeout: 300 * time.Millisecond, Fall: 3, Rise: 2,
		})
	}
	if err := controller.SetServices([]lb.Service{service}); err != nil {
		t.Fatal(err)
	}
	checker := health.New(targets, discard)
	snapshot := func() Snapshot {
		return Snapshot{Node: "lb1", Now: time.Now(), Datapath: dp.stats(), Backends: controller.Snapshot(), Checks: checker.Snapshot()}
	}
	server, err := Open(Config{Listen: listen, Log: discard, Snapshot: snapshot})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = checker.Run(ctx) })
	wg.Go(func() { _ = server.Run(ctx) })
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-checker.Transitions():
				_ = controller.SetHealth(c.Service, c.Backend, c.Up, c.Reason)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return controller, Runtime{snapshot}
}

// serversState is a "show servers state" without what differs by nature: the
// numbers of the proxies, and times.
func serversState(text string) (rows []string) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) > 9 && words[0] != "#" {
			words[0], words[9] = "", ""
			if words[6] == "1" { // HAProxy does not check in maintenance
				words[12], words[13] = "", ""
			}
		}
		if len(words) > 0 {
			rows = append(rows, strings.Join(words, " "))
		}
	}
	return rows
}

// A monitor works as the classic container does: it gets the statistics, keeps
// the states in a file and posts what has changed.
type monitor struct {
	stats, file, hook string
}

func (m *monitor) fetch() (text string, err error) {
	resp, err := http.Get(m.stats)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// poll is what the container does every ten seconds.
func (m *monitor) poll(t *testing.T) {
	t.Helper()
	text, err := m.fetch()
	if err != nil {
		t.Fatal(err)
	}
	before, now := map[string]string{}, map[string]string{}
	data, err := os.ReadFile(m.file)
	if err == nil {
		err = json.Unmarshal(data, &before)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	_, rows := readClassic(t, text)
	for _, r := range rows {
		if r["pxname"] == "postgres" && r["svname"] != "FRONTEND" {
			now[r["svname"]], _, _ = strings.Cut(r["status"], " ")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if was, ok := before[name]; ok && was != now[name] {
			resp, err := http.Post(m.hook, "text/plain", strings.NewReader(name+" "+was+" -> "+now[name]))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
		}
	}
	if data, err = json.Marshal(now); err == nil {
		err = os.WriteFile(m.file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// inNamespace runs the calling test again as a process of its own, in a network
// namespace of its own, and reports whether this is that process.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const child = "PGSTEER_TEST_NAMESPACE"
	if os.Getenv(child) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return true
	}
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace, and time")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), child+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return false
}

// TestBesideHAProxy runs Debian's HAProxy and ours with equal configurations on the
// same poolers, through their deaths and returns: the same columns, the same rows,
// the same meaning, and the same verdicts of a monitor that knows only HAProxy.
func TestBesideHAProxy(t *testing.T) {
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		if _, err := os.Stat("/usr/sbin/haproxy"); err != nil {
			t.Skip("haproxy is not installed")
		}
		haproxy = "/usr/sbin/haproxy"
	}
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	cfg := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(cfg, fmt.Appendf(nil, haproxyConfig, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	poolers := []*pooler{{addr: "127.0.0.1:6432"}, {addr: "127.0.0.1:6433"}, {addr: "127.0.0.1:6434"}}
	for _, p := range poolers {
		p.start(t)
	}
	cmd := exec.Command(haproxy, "-db", "-f", cfg)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	controller, runtime := ours(t, "127.0.0.1:8405")

	// Each monitor posts to a list of its own.
	var mu sync.Mutex
	posts := map[string][]string{}
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		posts[r.URL.Path] = append(posts[r.URL.Path], string(body))
	}))
	defer hook.Close()
	monitors := []*monitor{
		{"http://127.0.0.1:8404/stats;csv", filepath.Join(dir, "theirs.json"), hook.URL + "/theirs"},
		{"http://127.0.0.1:8405/stats;csv", filepath.Join(dir, "ours.json"), hook.URL + "/ours"},
	}

	// await waits until both have the states, in the order of the poolers and the sum.
	await := func(want string) (theirs, mine []map[string]string, headers [][]string) {
		t.Helper()
		var got [2]string
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			var all [2][]map[string]string
			headers = nil
			for i, m := range monitors {
				text, err := m.fetch()
				if err != nil {
					got[i] = err.Error()
					continue
				}
				header, rows := readClassic(t, text)
				headers = append(headers, header)
				var states []string
				for _, r := range rows {
					if r["pxname"] == "postgres" {
						all[i] = append(all[i], r)
						if r["svname"] != "FRONTEND" {
							states = append(states, r["status"])
						}
					}
				}
				got[i] = strings.Join(states, " ")
			}
			if got[0] == want && got[1] == want {
				return all[0], all[1], headers
			}
		}
		t.Fatalf("HAProxy has %q, we have %q, want %q", got[0], got[1], want)
		return nil, nil, nil
	}
	same := func(what string, theirs, mine []map[string]string) {
		t.Helper()
		if len(theirs) != len(mine) {
			t.Fatalf("%s: HAProxy has %d rows, we have %d", what, len(theirs), len(mine))
		}
		for i, a := range theirs {
			b := mine[i]
			for _, c := range []string{"pxname", "svname", "qcur", "scur", "status", "act", "bck", "pid", "type", "check_status", "check_desc", "check_rise", "check_fall", "check_health", "mode", "weight", "chkdown"} {
				if c == "chkdown" && a["svname"] == "BACKEND" || c == "check_health" && strings.Contains(a["status"], "/") {
					continue // HAProxy counts the times that nothing was left there
				}
				// The "* " says that a check is under way.
				if strings.TrimPrefix(a[c], "* ") != b[c] {
					t.Errorf("%s: %s of %s: HAProxy has %q, we have %q", what, c, a["svname"], a[c], b[c])
				}
			}
			if a["svname"] == "pooler1" && a["slim"] != b["slim"] {
				t.Errorf("%s: limit of pooler1: HAProxy has %q, we have %q", what, a["slim"], b["slim"])
			}
			for c, v := range b {
				if _, known := a[c]; known && v != "" && a[c] == "" && c != "addr" && c != "algo" && c != "qcur" && c != "-" {
					t.Errorf("%s: %s of %s has no value in HAProxy, %q with us", what, c, a["svname"], v)
				}
			}
		}
	}
	poll := func() {
		for _, m := range monitors {
			m.poll(t)
		}
	}

	theirs, mine, headers := await("UP UP UP UP")
	until := slices.Index(headers[0], "-")
	known := slices.Index(headers[1], "-")
	// A later HAProxy has more columns before its end.
	if until < known || !slices.Equal(headers[0][:known], headers[1][:known]) {
		t.Errorf("the columns of HAProxy are\n%q\nand ours\n%q", headers[0], headers[1])
	}
	same("all up", theirs, mine)
	poll()
	poolers[1].stop(t)
	theirs, mine, _ = await("UP DOWN UP UP")
	same("one down", theirs, mine)
	poll()
	poll() // says nothing twice
	poolers[0].stop(t)
	theirs, mine, _ = await("DOWN DOWN UP UP")
	same("the backup alone", theirs, mine)
	poll()
	poolers[2].stop(t)
	theirs, mine, _ = await("DOWN DOWN DOWN DOWN")
	same("all down", theirs, mine)
	poll()
	for _, p := range poolers {
		p.start(t)
	}
	theirs, mine, _ = await("UP UP UP UP")
	same("all up again", theirs, mine)
	poll()

	// The operator's words.
	say := func(command string) string {
		t.Helper()
		c, err := net.Dial("unix", filepath.Join(dir, "haproxy.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, command+"\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
	for _, tt := range []struct {
		word  string
		state lb.AdminState
		want  string
	}{{"drain", lb.AdminDraining, "DRAIN UP UP UP"}, {"maint", lb.AdminMaint, "MAINT UP UP UP"}, {"ready", lb.AdminReady, "UP UP UP UP"}} {
		say("set server postgres/pooler1 state " + tt.word)
		if _, err := controller.Change("postgres", "pooler1", lb.Change{Admin: &tt.state}, "test"); err != nil {
			t.Fatal(err)
		}
		theirs, mine, _ = await(tt.want)
		text, ok := runtime.ServersState("postgres")
		if a, b := serversState(say("show servers state postgres")), serversState(text); !ok || !slices.Equal(a, b) {
			t.Errorf("%s: HAProxy has\n%q\nwe have\n%q", tt.word, a, b)
		}
		for i := range theirs {
			for _, c := range []string{"status", "act", "bck", "weight"} {
				if theirs[i][c] != mine[i][c] {
					t.Errorf("%s: %s of %s: HAProxy has %q, we have %q", tt.word, c, theirs[i]["svname"], theirs[i][c], mine[i][c])
				}
			}
		}
		poll()
	}

	if _, ok := runtime.ServersState("nope"); ok {
		t.Error("there is a backend that there is not")
	}
	info, err := runtime.Info()
	if err != nil {
		t.Fatal(err)
	}
	theirInfo := say("show info")
	for line := range strings.Lines(info) {
		if name, _, ok := strings.Cut(line, ":"); !ok || !strings.Contains("\n"+theirInfo, "\n"+name+":") {
			t.Errorf("HAProxy's show info has no line such as %s", line)
		}
	}
	if text, err := runtime.Stat(); err != nil || !strings.HasPrefix(say("show stat"), text[:strings.Index(text, "-,")]) {
		t.Errorf("show stat: %v, %s", err, text)
	}

	mu.Lock()
	defer mu.Unlock()
	want := []string{
		"pooler2 UP -> DOWN", "pooler1 UP -> DOWN", "BACKEND UP -> DOWN", "pooler3 UP -> DOWN",
		"BACKEND DOWN -> UP", "pooler1 DOWN -> UP", "pooler2 DOWN -> UP", "pooler3 DOWN -> UP",
		"pooler1 UP -> DRAIN", "pooler1 DRAIN -> MAINT", "pooler1 MAINT -> UP",
	}
	for _, who := range []string{"/theirs", "/ours"} {
		if !slices.Equal(posts[who], want) {
			t.Errorf("the monitor of %s posted %q, want %q", who[1:], posts[who], want)
		}
	}
}
