package stats

import (
	"encoding/csv"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// readClassic reads a CSV as its scrapers do: by the names in the first line.
func readClassic(t *testing.T, text string) (header []string, rows []map[string]string) {
	t.Helper()
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(strings.TrimSpace(text), "# ")))
	all, err := r.ReadAll() // which checks that all rows have as many columns
	if err != nil || len(all) == 0 {
		t.Fatalf("%v in %q", err, text)
	}
	for _, values := range all[1:] {
		row := make(map[string]string)
		for i, c := range all[0] {
			row[c] = values[i]
		}
		rows = append(rows, row)
	}
	return all[0], rows
}

func TestClassicGolden(t *testing.T) {
	s := sample()
	h, err := newHandler(Config{Snapshot: func() Snapshot { return s }, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	for path, file := range map[string]string{"/stats;csv": "testdata/classic.csv", "/stats;norefresh": "testdata/classic.html"} {
		got := get(h, path).Body.String()
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is not %s:\n%s", path, file, got)
		}
	}
	if page := get(h, "/stats;up").Body.String(); strings.Contains(page, ">pooler3<") || !strings.Contains(page, ">pooler1<") {
		t.Error("servers that are down are not hidden alone")
	}
	s.DatapathErr = errors.New("odd")
	if w := get(h, "/stats;csv"); w.Code != 503 || strings.Contains(w.Body.String(), "pxname") {
		t.Errorf("without a datapath: %d %s", w.Code, w.Body)
	}
}

func TestClassicStatus(t *testing.T) {
	check := func(up bool, n int) *health.TargetStatus {
		return &health.TargetStatus{Known: true, Up: up, Consecutive: n, Fall: 3, Rise: 2, LastResult: "ok"}
	}
	for _, tt := range []struct {
		state         lb.State
		backup        bool
		check         *health.TargetStatus
		status, class string
	}{
		{lb.Up, false, check(true, 0), "UP", "active_up"},
		{lb.Up, true, check(true, 1), "UP 2/3", "backup_going_down"},
		{lb.Up, false, check(true, 2), "UP 1/3", "active_going_down"},
		{lb.Down, false, check(false, 0), "DOWN", "active_down"},
		{lb.Down, false, check(false, 1), "DOWN 1/2", "active_going_up"},
		{lb.Down, false, nil, "DOWN", "active_down"},
		{lb.Draining, true, check(true, 0), "DRAIN", "backup_draining"},
		{lb.Maintenance, false, check(false, 0), "MAINT", "maintain"},
	} {
		status, class := serverStatus(&lb.BackendStats{State: tt.state, Backup: tt.backup}, tt.check)
		if status != tt.status || class != tt.class {
			t.Errorf("%+v: %s, %s", tt, status, class)
		}
	}
}

func TestClassicCheck(t *testing.T) {
	for _, tt := range []struct{ name, result, want string }{
		{"tcp", "ok", "L4OK"}, {"tcp", "connection refused", "L4CON"}, {"tcp", "no answer within 1s", "L4TOUT"},
		{"postgres", "ok", "L7OK"}, {"postgres", "connection refused", "L4CON"}, {"postgres", "no route to host", "L4CON"},
		{"postgres", "no answer within 1s", "L7TOUT"}, {"postgres", "57P03 the database system is starting up", "L7RSP"},
		{"postgres", "connection closed without an answer", "L7RSP"}, {"postgres", "unexpected answer: byte 0x48", "L7STS"},
	} {
		if got, about := checkStatus(&health.TargetStatus{Known: true, CheckName: tt.name, LastResult: tt.result}); got != tt.want || about == "" {
			t.Errorf("%s, %s: %s (%s)", tt.name, tt.result, got, about)
		}
	}
	if got, _ := checkStatus(new(health.TargetStatus)); got != "INI" {
		t.Errorf("not checked yet: %s", got)
	}
	if got := csvText(`a "b", c`); got != `"a ""b"", c"` {
		t.Errorf("quoted as %s", got)
	}
}
