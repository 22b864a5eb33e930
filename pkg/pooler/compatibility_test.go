package pooler

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/pgbouncer-compatibility.md")

const compatibilityDoc = "../../docs/pgbouncer-compatibility.md"

// bouncerCommands are those of PgBouncer's that change something (cmd_list in its
// admin.c, and SET), and what is to be said about them.
var bouncerCommands = map[string]string{
	"disable":     "",
	"enable":      "",
	"kill":        "a query that runs is cancelled as well",
	"kill_client": "sessions of the console, too",
	"pause":       "answers when no server is left; a cancel request or `RESUME` ends the wait with an error",
	"reconnect":   "",
	"reload":      "an error's detail is the reason; nothing is half done",
	"resume":      "",
	"set":         "until the next `RELOAD`; an error's detail is the reason; a key that needs a restart gives a notice",
	"shutdown":    "`WAIT_FOR_SERVERS` tells clients without a transaction to go (57P01) instead of leaving them; consoles are not waited for; no Unix socket stays open for admins",
	"suspend":     "for looking; a takeover does not go by it",
	"wait_close":  "",
}

// columnNotes are about columns, by SHOW command and name.
var columnNotes = map[string]string{
	"clients.replication":          "always `none`",
	"clients.ptr":                  "a name, no address in memory",
	"clients.link":                 "a name, no address in memory",
	"clients.user":                 "who logged in",
	"clients.wait":                 "for a server, now",
	"databases.load_balance_hosts": "NULL for one host",
	"databases.pool_size":          "of the console: sessions at the most",
	"dns_zones.zonename":           "no rows: serial numbers of zones are not watched",
	"fds.fd":                       "descriptors are not sent along",
	"fds.cancel":                   "always 0: a key would open doors",
	"fds.client_encoding":          "NULL, as what follows it",
	"mem.name":                     "the kinds of objects that there are here",
	"peer_pools.peer_id":           "no rows: connections for cancel requests are not kept",
	"pools.cl_active":              "with a server or without a request",
	"pools.cl_waiting_cancel_req":  "always 0: a cancel request does not wait for its turn",
	"pools.sv_being_canceled":      "a cancel request for them is on its way",
	"pools.sv_tested":              "being cleaned or checked",
	"servers.state":                "`tested` is being cleaned or checked; those that are being logged in are counted in POOLS and not listed",
	"sockets.recv_pos":             "always 0, as `pkt_pos` and `send_pos`",
	"stats.avg_recv":               "averages are over one to two times `stats_period`",
	"config.key":                   "those that mean something here",
	"config.changeable":            "`no`: a change needs a restart",
	"lists.items":                  "of free objects: always 0",
	"version.version":              "names both",
	"help.":                        "a notice, as in PgBouncer",
}

// TestCompatibility holds the console against the lists of PgBouncer's, and the
// document against what comes of it.
func TestCompatibility(t *testing.T) {
	p := startConsole(t, nil)
	console := dialConsole(t, p, testUser)
	var b strings.Builder
	b.WriteString("\n## Commands of the console\n\n| command | status | note |\n|---|---|---|\n")
	if have, want := append(slices.Collect(maps.Keys(orders)), "set"), slices.Sorted(maps.Keys(bouncerCommands)); !slices.Equal(slices.Sorted(slices.Values(have)), want) {
		t.Errorf("commands %v, PgBouncer has %v", have, want)
	}
	for _, name := range slices.Sorted(maps.Keys(bouncerCommands)) {
		status := "yes"
		if orders[name] == nil && name != "set" {
			status = "refused"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.ToUpper(name), status, bouncerCommands[name])
	}
	b.WriteString("\nAll errors have PgBouncer's text and SQLSTATE (08P01; `RELOAD` F0000).\n\n" +
		"## Columns of SHOW\n\nTypes and order are PgBouncer's 1.25.\n\n| command | column | status | note |\n|---|---|---|---|\n")
	data, err := os.ReadFile("testdata/console.columns")
	if err != nil {
		t.Fatal(err)
	}
	noted, listed := make(map[string]bool), make(map[string]bool)
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if fields[0] == "#" {
			continue
		}
		what := fields[0]
		listed[what] = true
		have := console.columnsOf(what)
		var want []string
		if len(fields) > 1 {
			for i, c := range columns(strings.ReplaceAll(fields[1], "T", "s"), strings.Join(fields[2:], " ")) {
				want = append(want, fmt.Sprintf("%s:%d", c.Name, c.Type))
				status := "yes"
				if i >= len(have) || have[i] != want[i] {
					status = "missing"
					t.Errorf("SHOW %s: column %d is not %s in %v", what, i, want[i], have)
				}
				note := columnNotes[what+"."+c.Name]
				noted[what+"."+c.Name] = true
				fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", strings.ToUpper(what), c.Name, status, note)
			}
		} else {
			noted[what+"."] = true
			fmt.Fprintf(&b, "| `%s` | | yes | %s |\n", strings.ToUpper(what), columnNotes[what+"."])
		}
		if len(have) > len(want) {
			t.Errorf("SHOW %s has more columns than PgBouncer: %v", what, have[len(want):])
		}
	}
	for what := range shows {
		if !listed[what] {
			fmt.Fprintf(&b, "| `%s` | | ours | |\n", strings.ToUpper(what))
		}
	}
	for name := range columnNotes {
		if !noted[name] {
			t.Errorf("note about %s, which is no column", name)
		}
	}
	checkDoc(t, b.String())
}

// columnsOf returns the columns of a SHOW, each as name:type.
func (c consoleConn) columnsOf(what string) (list []string) {
	c.t.Helper()
	results := c.Exec(testContext(c.t), "SHOW "+what)
	if !results.NextResult() {
		c.t.Fatalf("SHOW %s: %v", what, results.Close())
	}
	for _, f := range results.ResultReader().FieldDescriptions() {
		list = append(list, fmt.Sprintf("%s:%d", f.Name, f.DataTypeOID))
	}
	if err := results.Close(); err != nil {
		c.t.Errorf("SHOW %s: %v", what, err)
	}
	return list
}

// checkDoc compares the document's part about the console, or writes it.
func checkDoc(t *testing.T, text string) {
	t.Helper()
	data, err := os.ReadFile(compatibilityDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), "<!-- console -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- end of console -->\n")
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the console", compatibilityDoc)
	}
	want := before + "<!-- console -->\n" + text + "\n<!-- end of console -->\n" + after
	switch {
	case want == string(data):
	case *update:
		if err := os.WriteFile(compatibilityDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	case testing.Short():
		// Branches that each add a key meet in the document's lines: whoever
		// joins them writes it anew when all the tests run.
		t.Logf("%s is out of date", compatibilityDoc)
	default:
		t.Errorf("%s is out of date: run go test ./pkg/pooler -run TestCompatibility -update", compatibilityDoc)
	}
}
