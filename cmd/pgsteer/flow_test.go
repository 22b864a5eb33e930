package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// clientsOf are the ports of the clients in a list of flows, in its order.
func clientsOf(t *testing.T, res result) []int {
	t.Helper()
	var flows []lb.Flow
	if err := json.Unmarshal([]byte(res.stdout), &flows); err != nil || res.status != exitOK {
		t.Fatalf("status %d, %s%s, %v", res.status, res.stdout, res.stderr, err)
	}
	ports := []int{}
	for _, f := range flows {
		ports = append(ports, int(f.Client.Port()))
	}
	return ports
}

// mixedFlows are told apart by the ports of their clients, 1 to 6.
func mixedFlows() *fixture {
	f := sample()
	flow := func(client, service, backend, state string, age, idle time.Duration, bytes uint64) lb.Flow {
		return lb.Flow{
			Client: ap(client), Service: ap(service), SNAT: ap("192.168.1.100:10240"), Backend: ap(backend),
			State: state, Age: age, Idle: idle, BytesIn: bytes / 2, BytesOut: bytes - bytes/2,
		}
	}
	const v4, v6 = "192.168.1.100:5432", "[2001:db8::100]:5432"
	f.flows = []lb.Flow{
		flow("10.0.0.1:1", v4, "192.168.1.5:6432", "established", time.Hour, time.Second, 500),
		flow("10.0.1.1:2", v4, "192.168.1.5:6433", "established", 2*time.Hour, time.Minute, 100),
		flow("10.0.1.2:3", v4, "192.168.1.5:6432", "fin_client", time.Minute, 3*time.Second, 900),
		flow("[2001:db8::1]:4", v6, "[2001:db8::5]:6432", "established", 3*time.Hour, time.Hour, 300),
		flow("[2001:db8:1::1]:5", v6, "[2001:db8::5]:6432", "syn_sent", 0, 0, 60),
		flow("10.9.0.1:6", "192.168.1.102:5432", "192.168.1.9:6432", "established", 4*time.Hour, 0, 1), // no longer configured
	}
	return f
}

func TestFlowFilters(t *testing.T) {
	tests := []struct {
		args string
		want []int
	}{
		{"", []int{1, 2, 3, 4, 5, 6}},
		{"backend pooler1", []int{1, 3}},
		{"backend postgres/pooler2", []int{2}},
		{"backend 192.168.1.5:6432", []int{1, 3}},
		{"backend [2001:db8::5]:6432", []int{4, 5}},
		{"backend 192.168.1.9:6432", []int{6}},
		{"service postgres", []int{1, 2, 3}},
		{"service [2001:db8::100]:5432", []int{4, 5}},
		{"service 192.168.1.102:5432", []int{6}},
		{"service postgres backend pooler1", []int{1, 3}},
		{"service 192.168.1.100:5432 backend pooler2", []int{2}},
		{"service six backend 192.168.1.5:6432", []int{}},
		{"client 10.0.1.0/24", []int{2, 3}},
		{"client 10.0.1.77/24", []int{2, 3}},
		{"client 10.0.1.1", []int{2}},
		{"client 2001:db8::/48", []int{4}},
		{"client ::ffff:10.0.0.1", []int{1}},
		{"client 0.0.0.0/0", []int{1, 2, 3, 6}},
		{"client ::/0", []int{4, 5}},
		{"state established", []int{1, 2, 4, 6}},
		{"state e", []int{1, 2, 4, 6}},
		{"state fin_b", []int{}},
		{"older 2h", []int{2, 4, 6}},
		{"older 0s", []int{1, 2, 3, 4, 5, 6}},
		{"idle 1m", []int{2, 4}},
		{"idle 1s older 90m state estab", []int{2, 4}},
		{"limit 2", []int{1, 2}},
		{"limit 1 backend pooler2", []int{2}},
		{"sort age", []int{6, 4, 2, 1, 3, 5}},
		{"sort idle", []int{4, 2, 3, 1}},
		{"sort bytes", []int{3, 1, 4, 2, 5, 6}},
		{"sort bytes limit 2", []int{3, 1}},
		{"so b li 1 st e", []int{1}},
		{"sort age limit 2 client 10.0.0.0/15", []int{2, 1}},
	}
	for _, tt := range tests {
		got := clientsOf(t, run(mixedFlows(), nil, "", strings.Fields("-j flow show "+tt.args)...))
		if tt.args == "sort idle" {
			got = got[:4] // the others have none
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("flow show %s: got %v, want %v", tt.args, got, tt.want)
		}
	}
}

func TestFlowRemarks(t *testing.T) {
	for args, want := range map[string]string{
		"":                         "Found 6 flows\n",
		"limit 6":                  "Found 6 flows\n",
		"limit 5":                  "Found more than 5 flows; the others were not looked at\n",
		"backend pooler2 limit 1":  "Found 1 flow\n",
		"sort age":                 "Found 6 flows\n",
		"sort age limit 2":         "Found 6 flows; these are the first 2\n",
		"sort age limit 1 state e": "Found 4 flows; these are the first 1\n",
		"state closed":             "Found 0 flows\n",
		"state closed sort age":    "Found 0 flows\n",
	} {
		res := run(mixedFlows(), nil, "", strings.Fields("flow show "+args)...)
		last := res.stdout[strings.LastIndex(strings.TrimSuffix(res.stdout, "\n"), "\n")+1:]
		if res.status != exitOK || last != want {
			t.Errorf("flow show %s: status %d, %s, last line %q", args, res.status, res.stderr, last)
		}
	}
}

func TestFlowErrors(t *testing.T) {
	const keys = "want one of backend, client, service, state, older, idle, sort, limit"
	for args, want := range map[string]string{
		"show 1":                     `flow show: unknown keyword "1"; ` + keys,
		"show s x":                   `flow show: keyword "s" is ambiguous: service or state or sort`,
		"show backend":               "flow show: backend needs a value: NAME",
		"show limit 1 limit 2":       "flow show: limit is given twice",
		"show limit 0":               `flow show: limit: "0" is no number from 1 to 2147483647`,
		"show limit -1":              "unknown option -1; see pgsteer help",
		"show limit many":            `flow show: limit: "many" is no number from 1 to 2147483647`,
		"show sort age limit 100001": "flow show: limit: a sorted list has 100000 lines at most",
		"show sort size":             `flow show: sort: unknown key "size"; want one of age, idle, bytes`,
		"show older 5":               `flow show: older: "5" is no length of time; want one like 90s, 5m or 24h`,
		"show older 1d":              `flow show: older: "1d" is no length of time; want one like 90s, 5m or 24h`,
		"show client lan":            `flow show: client: "lan" is no network; want ADDRESS/BITS or ADDRESS`,
		"show client 10.0.0.0/33":    `flow show: client: "10.0.0.0/33" is no network; want ADDRESS/BITS or ADDRESS`,
		"show client fe80::1%eth0":   `flow show: client: "fe80::1%eth0" is no network; want ADDRESS/BITS or ADDRESS`,
		"show state fin":             `flow show: state: state "fin" is ambiguous: fin_client or fin_backend`,
		"show backend ''":            "flow show: backend: want a name or ADDRESS:PORT",
		"whois":                      "flow whois: want one ADDRESS:PORT",
		"whois 1.2.3.4:5 1.2.3.4:6":  "flow whois: want one ADDRESS:PORT",
		"whois 1.2.3.4":              `flow whois: "1.2.3.4" is no address with a port; want ADDRESS:PORT or [ADDRESS]:PORT`,
		"whois 1.2.3.4:0":            `flow whois: "1.2.3.4:0" is no address with a port; want ADDRESS:PORT or [ADDRESS]:PORT`,
		"whois 2001:db8::1:5":        `flow whois: "2001:db8::1:5" is no address with a port; want ADDRESS:PORT or [ADDRESS]:PORT`,
	} {
		words := strings.Fields("flow " + args)
		for i, w := range words {
			words[i] = strings.Trim(w, "'")
		}
		res := run(nil, fmt.Errorf("must not open"), "", words...)
		if res.status != exitUsage || res.stderr != "pgsteer: "+want+"\n" || res.stdout != "" {
			t.Errorf("flow %s: status %d, %s", args, res.status, res.stderr)
		}
	}
	for args, want := range map[string]string{
		"backend poller1":                "no backend \"poller1\"; did you mean pooler1?",
		"backend postgres/poler2":        "no backend \"postgres/poler2\"; did you mean postgres/pooler2?",
		"service post":                   "no service \"post\"; there is postgres, reports, six",
		"service postgras":               "no service \"postgras\"; did you mean postgres?",
		"service reports backend pooler": "no backend \"pooler\"; there is r1, reports/r1",
	} {
		res := run(mixedFlows(), nil, "", strings.Fields("flow show "+args)...)
		if res.status != exitFailure || res.stderr != "pgsteer: "+want+"\n" {
			t.Errorf("flow show %s: status %d, %s", args, res.status, res.stderr)
		}
	}
	if res := run(&fixture{}, nil, "", "flow", "show", "service", "x"); res.stderr != "pgsteer: no service \"x\": there is none at all\n" {
		t.Errorf("without services: %s", res.stderr)
	}
}

func TestFlowWhois(t *testing.T) {
	f := mixedFlows()
	f.flows[3].SNAT = ap("[2001:db8::100]:20000")
	f.flows[5].SNAT = ap("192.168.1.100:10241")
	res := run(f, nil, "", "flow", "whois", "192.168.1.100:10241")
	const want = "CLIENT      SERVICE             BACKEND           STATE           AGE  IDLE\n" +
		"10.9.0.1:6  192.168.1.102:5432  192.168.1.9:6432  established  4h0m0s    0s\n"
	if res.status != exitOK || res.stdout != want || res.stderr != "" {
		t.Errorf("status %d, %s%s", res.status, res.stdout, res.stderr)
	}
	for source, want := range map[string][]int{
		"192.168.1.100:10240":          {1, 2, 3, 5}, // one port, several backends
		"[::ffff:192.168.1.100]:10240": {1, 2, 3, 5},
		"[2001:db8::100]:20000":        {4},
	} {
		if got := clientsOf(t, run(f, nil, "", "-j", "flow", "whois", source)); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", source, got, want)
		}
	}
	const none = "no flow in the table has the source 192.168.1.100:9 towards its backend"
	if res := run(f, nil, "", "flow", "whois", "192.168.1.100:9"); res.status != exitFailure || res.stdout != "" || res.stderr != "pgsteer: "+none+"\n" {
		t.Errorf("none: status %d, %s%s", res.status, res.stdout, res.stderr)
	}
	if res := run(f, nil, "", "flow", "whois", "192.168.1.100:9", "-j"); res.status != exitFailure || res.stdout != "[]\n" || !strings.Contains(res.stderr, none) {
		t.Errorf("none as JSON: status %d, %s%s", res.status, res.stdout, res.stderr)
	}
}

// TestFlowJSON holds the quick way of writing a flow against encoding/json.
func TestFlowJSON(t *testing.T) {
	flows := append(sample().flows, lb.Flow{
		Client: ap("[::1]:1"), Service: ap("[2001:db8::1]:2"), SNAT: ap("0.0.0.0:0"), Backend: ap("1.2.3.4:65535"), State: "reset",
		Age: -5, Idle: 1 << 62, PacketsIn: 1<<64 - 1, BytesIn: 2, PacketsOut: 3, BytesOut: 4,
	})
	for _, f := range flows {
		want, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendFlow(nil, &f); string(got) != string(want) {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	}
}

// TestFlowTop compares the heap with sorting everything.
func TestFlowTop(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	f := sample()
	f.flows = nil
	for i := range 5000 {
		f.flows = append(f.flows, lb.Flow{Client: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(i)), Age: time.Duration(random.Uint32())})
	}
	all := slices.Clone(f.flows)
	slices.SortFunc(all, func(a, b lb.Flow) int { return int(b.Age - a.Age) })
	for _, limit := range []int{1, 2, 999, 1000, 4999, 5000, 6000} {
		got := clientsOf(t, run(f, nil, "", "-j", "flow", "show", "sort", "age", "limit", fmt.Sprint(limit)))
		var want []int
		for _, flow := range all[:min(limit, len(all))] {
			want = append(want, int(flow.Client.Port()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: the order is not that of sorting them all", limit)
		}
	}
	if got := clientsOf(t, run(f, nil, "", "-j", "flow", "show", "sort", "age")); len(got) != defaultSorted {
		t.Errorf("without a limit: %d flows", len(got))
	}
}

// endless is a table of many flows that are made as they are read.
type endless struct {
	fixture
	flows int
	after func(n int) // called with the number of those read
}

func (e *endless) Flows(fn func(lb.Flow) bool) error {
	f := sample().flows[2]
	for i := range e.flows {
		f.Idle = time.Duration(i)
		if !fn(f) {
			return nil
		}
		if e.after != nil {
			e.after(i + 1)
		}
	}
	return nil
}

func runEndless(ctx context.Context, e *endless, args ...string) (status int, written int64, stderr string) {
	var discard counting
	var errs bytes.Buffer
	t := tool{
		stdout: &discard, stderr: &errs,
		getenv: func(string) string { return "" },
		open:   func(string) (reader, error) { return e, nil },
	}
	status = t.run(ctx, args)
	return status, int64(discard), errs.String()
}

type counting int64

func (c *counting) Write(p []byte) (int, error) {
	*c += counting(len(p))
	return len(p), nil
}

// TestFlowMemory checks that flows are not held: the heap does not grow while
// the second half of many is written.
func TestFlowMemory(t *testing.T) {
	for _, args := range []string{"flow", "flow -j", "flow -p", "flow show sort idle", "flow show sort idle -j limit 1000", "flow show backend pooler1"} {
		const flows = 20_000
		heap := func() int64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		var before, after int64
		e := &endless{fixture: *sample(), flows: flows, after: func(n int) {
			switch n {
			case flows / 2:
				before = heap()
			case flows:
				after = heap()
			}
		}}
		status, _, stderr := runEndless(t.Context(), e, strings.Fields(args)...)
		// A flow is 200 bytes, its line about as long.
		if status != exitOK || after-before > flows/2*50 {
			t.Errorf("pgsteer %s: status %d, %s, grew by %d bytes", args, status, stderr, after-before)
		}
	}
}

// TestFlowInterrupted checks that the user can end a long list, and that it is
// not taken for a whole one.
func TestFlowInterrupted(t *testing.T) {
	for _, args := range []string{"flow -j", "flow show sort age"} {
		ctx, cancel := context.WithCancel(t.Context())
		read := 0
		e := &endless{fixture: *sample(), flows: 1000, after: func(n int) {
			if read = n; n == 10 {
				cancel()
			}
		}}
		status, _, stderr := runEndless(ctx, e, strings.Fields(args)...)
		if status != exitFailure || !strings.Contains(stderr, "interrupted") || read != 10 {
			t.Errorf("pgsteer %s: status %d, %s, %d flows read", args, status, stderr, read)
		}
	}
}

// BenchmarkFlows has one million flows an operation.
func BenchmarkFlows(b *testing.B) {
	for _, args := range []string{"flow", "flow -j", "flow show sort idle", "flow show client 10.0.0.0/8", "flow whois 1.2.3.4:5"} {
		b.Run(strings.ReplaceAll(args, " ", "_"), func(b *testing.B) {
			for b.Loop() {
				e := &endless{fixture: *sample(), flows: 1_000_000}
				runEndless(b.Context(), e, strings.Fields(args)...)
			}
		})
	}
}
