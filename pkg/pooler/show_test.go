package pooler

import (
	"log/slog"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestConsoleShow compares what is shown with what was done.
func TestConsoleShow(t *testing.T) {
	p := startPooler(t, func(c *Config) {
		c.PoolSize = 2
		c.AdminUsers = []string{testUser}
		c.Databases = map[string]Database{"alias": {Host: c.Fallback.Host, Port: c.Fallback.Port, DBName: "postgres", PoolSize: 3}}
		c.Settings = []Setting{{Name: "max_client_conn", Value: "4000", Default: "100"}}
		c.StatsPeriod = time.Hour
	})
	console := dialConsole(t, p, testUser)
	active, second, waiting := dialRaw(t, p), dialRaw(t, p), dialRaw(t, p)
	active.send(msgParse("named", "select 1"), msgBind("", "named"), msgExecute(""), syncMsg)
	active.until('Z')
	active.send(msgQuery("begin"))
	active.until('Z')
	second.send(msgQuery("begin"))
	second.until('Z')
	waiting.send(msgQuery("select 1"))
	until(t, "a client to wait", func() bool { return p.pool().ClientsWaiting == 1 })

	clients := console.show("clients")
	if len(clients) != 4 {
		t.Fatalf("%d clients: %v", len(clients), clients)
	}
	local := active.conn.LocalAddr().(*net.TCPAddr)
	row := find(t, clients, "port="+itoa(local.Port), "addr=127.0.0.1", "type=C", "user="+testUser, "database=postgres", "replication=none",
		"state=active", "local_addr=127.0.0.1", "local_port="+itoa(p.port), "prepared_statements=1", "tls=", "remote_pid=0", "close_needed=0", "wait=0")
	servers := console.show("servers")
	if len(servers) != 2 {
		t.Fatalf("%d servers: %v", len(servers), servers)
	}
	server := find(t, servers, "ptr="+row["link"], "link="+row["ptr"], "type=S", "state=active", "addr=127.0.0.1",
		"port="+itoa(cluster.port), "local_addr=127.0.0.1", "prepared_statements=1")
	if server["remote_pid"] == "0" || server["local_port"] == "0" || server["id"] == row["id"] {
		t.Errorf("server: %v", server)
	}
	for _, column := range []string{"connect_time", "request_time"} {
		at, err := time.ParseInLocation("2006-01-02 15:04:05 MST", row[column], time.Local)
		if err != nil || time.Since(at) > time.Minute || time.Since(at) < -2*time.Second {
			t.Errorf("%s is %q: %v", column, row[column], err)
		}
	}
	row = find(t, clients, "port="+itoa(waiting.conn.LocalAddr().(*net.TCPAddr).Port), "state=waiting", "link=")
	if row["wait"] == "0" && row["wait_us"] == "0" {
		t.Errorf("does not wait: %v", row)
	}
	find(t, clients, "user="+testUser, "database=pgbouncer", "state=active", "application_name=looker")
	if row := find(t, console.show("pools"), "database=postgres", "user="+testUser, "cl_active=2", "cl_waiting=1", "sv_active=2", "sv_idle=0",
		"pool_mode=transaction", "load_balance_hosts=NULL"); row["maxwait"] == "0" && row["maxwait_us"] == "0" {
		t.Errorf("pool: %v", row)
	}
	find(t, console.show("pools"), "database=pgbouncer", "user=pgbouncer", "cl_active=1", "pool_mode=statement")
	databases := console.show("databases")
	find(t, databases, "name=alias", "host=127.0.0.1", "database=postgres", "pool_size=3", "force_user=NULL", "current_connections=0", "server_lifetime=3600")
	find(t, databases, "name=postgres", "port="+itoa(cluster.port), "pool_size=2", "current_connections=2", "current_client_connections=3")
	find(t, databases, "name=pgbouncer", "port="+itoa(p.port), "force_user=pgbouncer", "current_client_connections=1", "host=NULL")
	find(t, console.show("users"), "name="+testUser, "current_connections=2", "current_client_connections=4")
	find(t, console.show("config"), "key=max_client_conn", "value=4000", "default=100", "changeable=yes")
	find(t, console.show("state"), "key=active", "value=yes")
	find(t, console.show("mem"), "name=client_cache", "used=3", "free=0")
	find(t, console.show("mem"), "name=server_cache", "used=2")
	find(t, console.show("mem"), "name=prepared_statement_cache", "used=1")
	if rows := console.show("sockets"); len(rows) != 6 {
		t.Errorf("%d sockets", len(rows))
	} else {
		find(t, rows, "state=sv_active", "pkt_remain=0")
		find(t, rows, "state=cl_waiting")
	}
	if rows := console.show("active_sockets"); len(rows) != 0 {
		t.Errorf("with something in their buffers: %v", rows)
	}
	active.send(msgQuery("commit"))
	active.until('Z')
	waiting.until('Z')
	second.send(msgQuery("commit"))
	second.until('Z')
	second.send([]byte{'Q', 0, 0, 8, 0, 's'}) // the front of a message
	until(t, "a message that is not whole", func() bool {
		rows := console.show("active_sockets")
		return len(rows) == 1 && rows[0]["state"] == "cl_active" && rows[0]["pkt_remain"] == "2043"
	})

	// Averages are over the time since the start.
	totals := find(t, console.show("stats_totals"), "database=postgres", "xact_count=4", "query_count=6", "client_parse_count=1",
		"server_parse_count=1", "bind_count=1")
	if n, _ := strconv.Atoi(totals["server_assignment_count"]); n != 5 {
		t.Errorf("totals: %v", totals)
	}
	for _, column := range []string{"bytes_received", "bytes_sent", "xact_time", "query_time", "wait_time"} {
		if totals[column] == "0" {
			t.Errorf("%s is 0", column)
		}
	}
	stats := find(t, console.show("stats"), "database=postgres", "total_xact_count=4", "total_wait_time="+totals["wait_time"])
	averages := find(t, console.show("stats_averages"), "database=postgres")
	for average, total := range map[string]string{"avg_xact_time": "total_xact_time", "avg_wait_time": "total_wait_time"} {
		if a, _ := strconv.Atoi(stats[average]); a == 0 || stats[total] == "0" || stats[average] != averages[strings.TrimPrefix(average, "avg_")] {
			t.Errorf("%s is %s, of %s", average, stats[average], stats[total])
		}
	}
	find(t, console.show("totals"), "name=total_query_count")
	find(t, console.show("totals"), "name=total_ps_bind_count", "value=1")
}

// TestConsoleListsAll: each of many clients is listed once.
func TestConsoleListsAll(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.AdminUsers = []string{testUser} })
	const clients = 3*socketChunk + 1
	for range clients {
		dialRaw(t, p)
	}
	console := dialConsole(t, p, testUser)
	ports := make(map[string]bool)
	rows := console.show("clients")
	for _, row := range rows {
		ports[row["port"]] = true
	}
	if len(rows) != clients+1 || len(ports) != clients+1 {
		t.Errorf("%d rows with %d ports, want %d", len(rows), len(ports), clients+1)
	}
	ids := make(map[string]bool)
	for _, row := range append(rows, console.show("servers")...) {
		if ids[row["id"]] {
			t.Errorf("id %s twice", row["id"])
		}
		ids[row["id"]] = true
	}
}

// TestStatsLine: the line of the log has PgBouncer's words.
func TestStatsLine(t *testing.T) {
	var b strings.Builder
	w := newFakeWorld(t, func(l *limits) { l.logStats, l.statsPeriod = true, 10*time.Second })
	w.m.log = slog.New(slog.NewTextHandler(&b, nil))
	w.m.now = 10 * time.Second
	w.m.tick()
	p := w.m.poolFor(database("d", 1), "u")
	p.stats.Transactions, p.stats.Queries, p.stats.Logins, p.stats.BytesReceived = 20, 40, 10, 1000
	p.stats.TransactionTime = 20 * time.Millisecond
	w.m.now += 10 * time.Second
	w.m.tick()
	const want = "stats: 2 xacts/s, 4 queries/s, 0 client parses/s, 0 server parses/s, 0 binds/s, 1 client logins/s, " +
		"in 100 B/s, out 0 B/s, xact 1000 us, query 0 us, wait 0 us"
	if !strings.Contains(b.String(), want) {
		t.Errorf("logged %s, want %s", b.String(), want)
	}
}
