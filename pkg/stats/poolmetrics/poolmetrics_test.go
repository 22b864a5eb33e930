package poolmetrics

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pgsteer/pgsteer/pkg/pooler"
)

func sample() pooler.Snapshot {
	p := pooler.PoolSnapshot{
		Database: "app", User: "alice", Size: 70, ClientsIdle: 1, ClientsActive: 2, ClientsWaiting: 3, ClientsLogin: 4,
		ServersActive: 5, ServersIdle: 6, ServersUsed: 7, ServersLogin: 8, ServersTesting: 9, ServersSettling: 10,
		MaxWait: 1500 * time.Millisecond, Failure: "no",
		PoolStats: pooler.PoolStats{
			Logins: 11, Assignments: 12, BytesReceived: 13, BytesSent: 14, ServerLogins: 15, ServerLoginFailures: 16, ServersLost: 17,
			Cancels: 18, Settings: 19, Pins: 20, Leftovers: 21, Notifications: 22, ClientParses: 23, ServerParses: 24, Binds: 25,
			Transactions: 3, TransactionTime: 20 * time.Second,
		},
	}
	p.TransactionTimes[10], p.TransactionTimes[25] = 2, 1
	return pooler.Snapshot{
		Started: time.Unix(1700000000, 0), Clients: 10, MaxClients: 4000, Refusals: map[string]uint64{"auth": 1}, Statements: 5, StatementMemory: 6,
		Pools: []pooler.PoolSnapshot{p},
	}
}

func TestCollector(t *testing.T) {
	c := &collector{sample, "v1"}
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	want := `
# HELP pgsteer_pooler_pool_clients Clients of the pool, by state.
# TYPE pgsteer_pooler_pool_clients gauge
pgsteer_pooler_pool_clients{database="app",state="active",user="alice"} 2
pgsteer_pooler_pool_clients{database="app",state="idle",user="alice"} 1
pgsteer_pooler_pool_clients{database="app",state="login",user="alice"} 4
pgsteer_pooler_pool_clients{database="app",state="waiting",user="alice"} 3
# HELP pgsteer_pooler_pool_max_wait_seconds Time that the client has waited that has waited longest for a server now.
# TYPE pgsteer_pooler_pool_max_wait_seconds gauge
pgsteer_pooler_pool_max_wait_seconds{database="app",user="alice"} 1.5
# HELP pgsteer_pooler_pool_server_login_failing 1 if the last login to the server failed.
# TYPE pgsteer_pooler_pool_server_login_failing gauge
pgsteer_pooler_pool_server_login_failing{database="app",user="alice"} 1
# HELP pgsteer_pooler_refusals_total Clients that were turned away or ended with an error, by reason.
# TYPE pgsteer_pooler_refusals_total counter
pgsteer_pooler_refusals_total{reason="auth"} 1
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "pgsteer_pooler_pool_clients", "pgsteer_pooler_pool_max_wait_seconds",
		"pgsteer_pooler_pool_server_login_failing", "pgsteer_pooler_refusals_total"); err != nil {
		t.Error(err)
	}
	// Each number of the sample is another one, so that each counter has its own.
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[float64]string{}
	for _, f := range families {
		m := f.GetMetric()[0]
		switch {
		case strings.HasPrefix(f.GetName(), "pgsteer_pooler_pool_") && m.GetCounter() != nil:
			if other, ok := seen[m.GetCounter().GetValue()]; ok {
				t.Errorf("%s and %s are the same number", f.GetName(), other)
			}
			seen[m.GetCounter().GetValue()] = f.GetName()
		case f.GetName() == "pgsteer_pooler_pool_transaction_duration_seconds":
			h := m.GetHistogram()
			if h.GetSampleCount() != 3 || h.GetSampleSum() != 20 || len(h.GetBucket()) != pooler.HistogramBuckets-1 {
				t.Errorf("%v", h)
			}
			for _, b := range h.GetBucket() {
				if want := map[bool]uint64{true: 2, false: 0}[b.GetUpperBound() > 0.001]; b.GetCumulativeCount() != want {
					t.Errorf("%v below %v", b.GetCumulativeCount(), b.GetUpperBound())
				}
			}
		}
	}
	if len(seen) != len(counters) {
		t.Errorf("%d counters of %d", len(seen), len(counters))
	}
}

// TestServer has two processes share a port, as in a takeover.
func TestServer(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	first, err := Open("127.0.0.1:0", "v1", sample, log)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(first.Addr().String(), "v2", sample, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- second.Run(ctx) }()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + second.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), `pgsteer_pooler_build_info{goversion=`) ||
		!strings.Contains(string(text), `version="v2"} 1`) || !strings.Contains(string(text), "process_resident_memory_bytes") {
		t.Errorf("%v: %d\n%s", err, resp.StatusCode, text)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
