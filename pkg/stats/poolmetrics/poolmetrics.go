// Package poolmetrics serves a pooler's metrics to Prometheus.
package poolmetrics

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pgsteer/pgsteer/pkg/pooler"
	"github.com/pgsteer/pgsteer/pkg/stats/web"
)

// Open binds the port of the metrics. A process that takes over has it together
// with the one before, until that ends. Snapshot is called for each scrape.
func Open(listen, version string, snapshot func() pooler.Snapshot, log *slog.Logger) (*web.Server, error) {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		&collector{snapshot, version},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError),
	}))
	return web.Open("metrics", listen, true, mux, log)
}

// perPool are the labels of what each pool has.
var perPool = []string{"database", "user"}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pgsteer_pooler_"+name, help, labels, nil)
}

var (
	buildInfo  = desc("build_info", "Always 1; what the program was built from.", "version", "goversion")
	started    = desc("start_timestamp_seconds", "When the pooler began.")
	clients    = desc("clients", "Clients that are connected, those that are logging in included.")
	maxClients = desc("max_clients", "Clients that may be connected.")
	refusals   = desc("refusals_total", "Clients that were turned away or ended with an error, by reason.", "reason")
	statements = desc("prepared_statements", "Distinct prepared statements known.")
	stmtMemory = desc("prepared_statements_bytes", "Memory that they take.")

	poolSize    = desc("pool_size", "Servers that the pool may have.", perPool...)
	poolClients = desc("pool_clients", "Clients of the pool, by state.", append(perPool, "state")...)
	poolServers = desc("pool_servers", "Servers of the pool, by state.", append(perPool, "state")...)
	maxWait     = desc("pool_max_wait_seconds", "Time that the client has waited that has waited longest for a server now.", perPool...)
	failing     = desc("pool_server_login_failing", "1 if the last login to the server failed.", perPool...)

	waits        = desc("pool_wait_duration_seconds", "Time that clients waited for a server; those that found one at once are not counted.", perPool...)
	transactions = desc("pool_transaction_duration_seconds", "Time that a server was with a client.", perPool...)
	queries      = desc("pool_query_duration_seconds", "Time in which an answer was due.", perPool...)
)

// counters are those of a pool that are plain numbers.
var counters = []struct {
	desc  *prometheus.Desc
	value func(*pooler.PoolSnapshot) uint64
}{
	{desc("pool_client_logins_total", "Logins of clients.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Logins }},
	{desc("pool_server_assignments_total", "Times that a client was given a server.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Assignments }},
	{desc("pool_received_bytes_total", "Bytes from clients.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.BytesReceived }},
	{desc("pool_sent_bytes_total", "Bytes to clients.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.BytesSent }},
	{desc("pool_server_logins_total", "Logins to the server.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.ServerLogins }},
	{desc("pool_server_login_failures_total", "Logins to the server that failed.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.ServerLoginFailures }},
	{desc("pool_servers_lost_total", "Server connections that the other side closed.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.ServersLost }},
	{desc("pool_cancels_total", "Cancel requests sent to servers.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Cancels }},
	{desc("pool_settings_total", "Hand-outs before which the server was given the client's parameters.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Settings }},
	{desc("pool_pins_total", "Times that a client kept its server for session advisory locks.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Pins }},
	{desc("pool_leftovers_total", "Transactions that left session state behind.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Leftovers }},
	{desc("pool_notifications_dropped_total", "Notifications of pooled servers, which belong to no client.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Notifications }},
	{desc("pool_client_parses_total", "Parses of named statements by clients.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.ClientParses }},
	{desc("pool_server_parses_total", "Parses of named statements sent to servers.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.ServerParses }},
	{desc("pool_binds_total", "Binds by clients.", perPool...), func(p *pooler.PoolSnapshot) uint64 { return p.Binds }},
}

// collector makes metrics from snapshots.
type collector struct {
	snapshot func() pooler.Snapshot
	version  string
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildInfo, started, clients, maxClients, refusals, statements, stmtMemory,
		poolSize, poolClients, poolServers, maxWait, failing, waits, transactions, queries,
	} {
		ch <- d
	}
	for _, n := range counters {
		ch <- n.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.snapshot()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(buildInfo, 1, c.version, runtime.Version())
	gauge(started, float64(s.Started.UnixMilli())/1000)
	gauge(clients, float64(s.Clients))
	gauge(maxClients, float64(s.MaxClients))
	gauge(statements, float64(s.Statements))
	gauge(stmtMemory, float64(s.StatementMemory))
	for reason, n := range s.Refusals {
		ch <- prometheus.MustNewConstMetric(refusals, prometheus.CounterValue, float64(n), reason)
	}
	for i := range s.Pools {
		collectPool(ch, gauge, &s.Pools[i])
	}
}

func collectPool(ch chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string), p *pooler.PoolSnapshot) {
	gauge(poolSize, float64(p.Size), p.Database, p.User)
	gauge(maxWait, p.MaxWait.Seconds(), p.Database, p.User)
	failed := 0.0
	if p.Failure != "" {
		failed = 1
	}
	gauge(failing, failed, p.Database, p.User)
	for state, n := range map[string]int{
		"idle": p.ClientsIdle, "active": p.ClientsActive, "waiting": p.ClientsWaiting, "login": p.ClientsLogin,
	} {
		gauge(poolClients, float64(n), p.Database, p.User, state)
	}
	for state, n := range map[string]int{
		"active": p.ServersActive, "idle": p.ServersIdle, "used": p.ServersUsed, "login": p.ServersLogin,
		"testing": p.ServersTesting, "settling": p.ServersSettling,
	} {
		gauge(poolServers, float64(n), p.Database, p.User, state)
	}
	for _, c := range counters {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(c.value(p)), p.Database, p.User)
	}
	ch <- histogram(waits, &p.Waits, p.WaitTime, p)
	ch <- histogram(transactions, &p.TransactionTimes, p.TransactionTime, p)
	ch <- histogram(queries, &p.QueryTimes, p.QueryTime, p)
}

func histogram(d *prometheus.Desc, h *pooler.Histogram, sum time.Duration, p *pooler.PoolSnapshot) prometheus.Metric {
	count := uint64(0)
	buckets := make(map[float64]uint64, len(h))
	for i, n := range h {
		count += n
		if end, ok := pooler.UpperBound(i); ok {
			buckets[end.Seconds()] = count
		}
	}
	return prometheus.MustNewConstHistogram(d, count, sum.Seconds(), buckets, p.Database, p.User)
}
