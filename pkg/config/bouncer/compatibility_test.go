package bouncer

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/pgbouncer-compatibility.md")

const compatibilityDoc = "../../../docs/pgbouncer-compatibility.md"

// notes are what is to be said about keys beside their status.
var notes = map[string]string{
	"pgbouncer.auth_type":          "which of PgBouncer's types there are, an error about another one says",
	"pgbouncer.listen_addr":        "names as well; `*` only by itself",
	"pgbouncer.logfile":            "besides standard error; a reload opens it anew",
	"pgbouncer.pool_mode":          "a reload changes it for clients that come afterwards",
	"pgbouncer.max_client_conn":    "refused if the limit of open files does not allow it; consoles do not count",
	"pgbouncer.server_lifetime":    "at most one server a pool and quarter of a second",
	"pgbouncer.server_login_retry": "a server that cannot be reached is tried sooner: after 250 ms, doubled up to 2 s",
	"pgbouncer.user":               "an error if that is another user and we are not root",
	"pgbouncer.verbose":            "more than 0: what is logged for debugging",
	"pgbouncer.stats_users":        "must be in `auth_file`, as `admin_users`",
	"pgbouncer.trusted_balancers":  "who is believed when it names a connection's client",
	"pgbouncer.query_wait_timeout": "goes on during `PAUSE`, as in PgBouncer",
	"pgbouncer.peer_id":            "shown; cancel requests are not passed on yet, which a warning says",
	"peers.host":                   "shown; cancel requests are not passed on yet, which a warning says",
	"databases.password":           "only with `user`",
	"databases.reserve_pool":       "until 1.23 the name of `reserve_pool_size`",
	"databases.pool_mode":          "a reload changes it for clients that come afterwards",
}

// keyRow is a line of a table.
type keyRow struct{ key, status, fallback, note string }

func rowsOf[T any](section string, rules map[string]rule[T], own []string) (rows []keyRow) {
	for _, key := range keysOf(rules) {
		r := rules[key]
		row := keyRow{key: key, note: notes[section+"."+key]}
		switch {
		case slices.Contains(own, key):
			row.status = "ours"
		case r.set != nil:
			row.status = "yes"
		case len(r.only) > 0:
			row.status = "fixed"
			row.note = cmp.Or(row.note, "accepted: "+quoted(strings.Join(r.only, "`, `")))
		case r.moot != "":
			row.status = "no effect"
			row.note = cmp.Or(row.note, r.moot)
		default:
			row.status = "refused"
		}
		if section == "pgbouncer" {
			row.fallback = quoted(defaultTexts[key])
			if len(r.only) == 1 && r.set == nil {
				row.fallback = quoted(r.only[0])
			}
			if r.moot != "" || row.status == "refused" {
				row.fallback = ""
			}
			if !Changeable(key) {
				row.note = strings.TrimPrefix(row.note+"; needs a restart", "; ")
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func quoted(s string) string {
	if s == "" {
		return "empty"
	}
	return "`" + s + "`"
}

// TestCompatibility holds the document against the tables of keys.
func TestCompatibility(t *testing.T) {
	var b strings.Builder
	table := func(title string, rows []keyRow, defaults bool) {
		fmt.Fprintf(&b, "\n## %s\n\n", title)
		if defaults {
			b.WriteString("| key | status | default | note |\n|---|---|---|---|\n")
		} else {
			b.WriteString("| key | status | note |\n|---|---|---|\n")
		}
		for _, r := range rows {
			fmt.Fprintf(&b, "| `%s` | %s |", r.key, r.status)
			if defaults {
				fmt.Fprintf(&b, " %s |", r.fallback)
			}
			fmt.Fprintf(&b, " %s |\n", r.note)
		}
	}
	table("Keys of [pgbouncer]", rowsOf("pgbouncer", settings, ownSettings), true)
	table("Keys of an entry of [databases]", rowsOf("databases", databaseKeys, ownDatabaseKeys), false)
	table("Keys of an entry of [users]", rowsOf("users", userKeys, nil), false)
	table("Keys of an entry of [peers]", rowsOf("peers", peerKeys, nil), false)
	b.WriteString("\n`%include`, the entry `*` of [databases] and quoted names are as in PgBouncer; a key that appears twice is an error.\n")
	for key := range notes {
		section, name, _ := strings.Cut(key, ".")
		known := map[string]func() bool{
			"pgbouncer": func() bool { _, ok := settings[name]; return ok },
			"databases": func() bool { _, ok := databaseKeys[name]; return ok },
			"peers":     func() bool { _, ok := peerKeys[name]; return ok },
		}[section]
		if known == nil || !known() {
			t.Errorf("note about %s, which is no key", key)
		}
	}
	data, err := os.ReadFile(compatibilityDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), "<!-- keys -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- end of keys -->\n")
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the keys", compatibilityDoc)
	}
	want := before + "<!-- keys -->\n" + b.String() + "\n<!-- end of keys -->\n" + after
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
		t.Errorf("%s is out of date: run go test ./pkg/config/bouncer -run TestCompatibility -update", compatibilityDoc)
	}
}
