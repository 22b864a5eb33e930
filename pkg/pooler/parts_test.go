package pooler

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestExpects compares the ring with a plain slice, over random operations.
func TestExpects(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var e expects
		var model []expect
		for range 500 {
			switch {
			case r.IntN(5) < 3:
				x := expect{kind: expectKind(r.IntN(int(copyEnd) + 1)), seq: r.Uint64()}
				if x.kind == expectReplies {
					x.n, x.seq = 1+r.Uint32N(3), 0
				}
				if n := len(model); n > 0 && x.kind == expectReplies && model[n-1].kind == expectReplies {
					model[n-1].n += x.n
				} else {
					model = append(model, x)
				}
				e.push(x)
			case len(model) == 0:
			case r.IntN(4) > 0:
				if got := e.pop(); got != model[0] {
					t.Fatalf("pop: %+v, want %+v", got, model[0])
				}
				model = model[1:]
			default:
				n := r.IntN(len(model))
				var undone []expect
				e.cut(n, func(x expect) { undone = append(undone, x) })
				want := slices.Clone(model[1 : 1+n])
				slices.Reverse(want)
				if !slices.Equal(undone, want) {
					t.Fatalf("cut of %d undid %+v, want %+v", n, undone, want)
				}
				model = slices.Delete(model, 1, 1+n)
			}
			if e.n != len(model) {
				t.Fatalf("%d entries, want %d", e.n, len(model))
			}
			var unsure [numUnsure]int
			for i := range model {
				if *e.at(i) != model[i] {
					t.Fatalf("entry %d: %+v, want %+v", i, *e.at(i), model[i])
				}
				if which, yes := model[i].unsure(); yes {
					unsure[which]++
				}
			}
			for i := range unsure {
				if e.closed[i]+e.open[i] != unsure[i] || e.closed[i] < 0 || e.open[i] < 0 {
					t.Fatalf("%d + %d uncertain, want %d", e.closed[i], e.open[i], unsure[i])
				}
			}
			kind := expectKind(r.IntN(int(copyEnd) + 1))
			if got, want := e.find(kind, 0), slices.IndexFunc(model, func(x expect) bool { return x.kind == kind }); got != want {
				t.Fatalf("find: %d, want %d", got, want)
			}
		}
	}
}

// TestUnsure: what an unanswered flight leaves uncertain counts when its Sync
// was sent.
func TestUnsure(t *testing.T) {
	var e expects
	e.push(expect{kind: expectParse})
	if e.unsure(unsureNamed) {
		t.Error("uncertain within its own flight")
	}
	e.push(expect{kind: expectSync})
	e.push(expect{kind: expectUnnamed})
	if !e.unsure(unsureNamed) || e.unsure(unsureUnnamed) {
		t.Error("want named statements to be uncertain, not the unnamed one")
	}
	e.pop()
	if e.unsure(unsureNamed) {
		t.Error("still uncertain when answered")
	}
}

// TestArena: what is composed behind received bytes joins what ends there.
func TestArena(t *testing.T) {
	a := arena{buf: make([]byte, 64)}
	copy(a.window(10), "0123456789")
	a.commit(10)
	s := append(a.scratch(3), "abc"...)
	joined, ok := a.extend(s, []byte("de"))
	if !ok || string(joined) != "abcde" || string(a.buf[:15]) != "0123456789abcde" {
		t.Errorf("joined: %q, %v", joined, ok)
	}
	a.scratch(1)
	if _, ok := a.extend(joined, []byte("f")); ok {
		t.Error("joined to bytes that are not the last")
	}
	if a.window(100) != nil {
		t.Error("a window beyond the end")
	}
	if s := a.scratch(100); len(s) != 0 || cap(s) < 100 {
		t.Error("no scratch space when the arena is full")
	}
	if _, ok := a.extend(a.buf[:16], make([]byte, 100)); ok {
		t.Error("joined beyond the end")
	}
}

func TestSplitOptions(t *testing.T) {
	tests := map[string][]string{
		"":                      nil,
		"  ":                    nil,
		"-c a=b":                {"-c", "a=b"},
		" -ca=b\t--c=d ":        {"-ca=b", "--c=d"},
		`-c a=b\ c`:             {"-c", "a=b c"},
		`-c a=b\\c -c d=\`:      {"-c", `a=b\c`, "-c", `d=\`},
		"-c\vsearch_path=a,b\n": {"-c", "search_path=a,b"},
	}
	for text, want := range tests {
		if got := splitOptions(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestAppendSet(t *testing.T) {
	have := paramState{vars: vars{"UTF8", "ISO, MDY", "UTC", "on", "", "postgres"}}
	have.rest = newParams([]pgwire.Param{{Name: "role", Value: "x"}, {Name: "Geqo", Value: "off"}, {Name: "a.\"b", Value: "1"}})
	want := have
	want.vars[varApplicationName], want.vars[varTimeZone] = `it's a \`, "Asia/Tokyo"
	want.rest = newParams([]pgwire.Param{{Name: "role", Value: "y"}, {Name: "SEARCH_PATH", Value: "a, 'b"}, {Name: "session_authorization", Value: "z"}})
	sql := `RESET "a"."""b";RESET "geqo";SET TimeZone='Asia/Tokyo';SET application_name=E'it''s a \\';` +
		`SELECT pg_catalog.set_config('search_path','a, ''b',false);` +
		`SELECT pg_catalog.set_config('session_authorization','z',false);SELECT pg_catalog.set_config('role','y',false);`
	if got := string(appendSet(nil, &have, &want)); got != string(pgwire.AppendQuery(nil, sql)) {
		t.Errorf("got %q", got)
	}
	for name, want := range map[string]int{"TIMEZONE": varTimeZone, "client_Encoding": varClientEncoding, "search_path": -1, "": -1} {
		if got := varIndex(name); got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
}

// TestStatementTable: one entry a text, gone with its last user.
func TestStatementTable(t *testing.T) {
	s := stmts{byKey: map[string]*stmt{}}
	a, _ := s.intern([]byte("select 1\x00\x00\x00"))
	b, _ := s.intern([]byte("select 1\x00\x00\x00"))
	c, _ := s.intern([]byte("select 1\x00\x00\x01\x00\x00\x00\x17"))
	if a != b || a == c || a.name == c.name {
		t.Fatalf("%q %q %q: want the first two to be the same", a.name, b.name, c.name)
	}
	s.release(a)
	s.release(b)
	d, _ := s.intern([]byte("select 1\x00\x00\x00"))
	if d == a || d.name == a.name {
		t.Error("a name was used again")
	}
	// One that an answer still on its way brings back.
	s.hold(a)
	s.release(a)
	if s.byKey[d.key] != d {
		t.Error("the newer one lost its place")
	}
	s.release(c)
	s.release(d)
	if len(s.byKey) != 0 || s.memory != 0 {
		t.Errorf("%d left, %d bytes", len(s.byKey), s.memory)
	}
}

// TestStatsPeriod: averages are over the time since the end of the last period
// but one.
func TestStatsPeriod(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.statsPeriod = 10 * time.Second })
	p := w.m.poolFor(database("d", 1), "u")
	step := func(to time.Duration, queries uint64, spent time.Duration) counters {
		w.m.now = to
		p.stats.Queries, p.stats.QueryTime = queries, spent
		recent := p.stats.counters().minus(p.period.older).averages(w.m.now - w.m.period.olderAt)
		w.m.tickPeriod()
		return recent
	}
	for _, tt := range []struct {
		at      time.Duration
		queries uint64
		spent   time.Duration
		// want are queries a second, and the microseconds of one.
		want, each uint64
	}{
		{5 * time.Second, 50, 100 * time.Millisecond, 10, 2000},
		{10 * time.Second, 200, 200 * time.Millisecond, 20, 1000}, // the first period ends
		{15 * time.Second, 200, 200 * time.Millisecond, 13, 1000},
		{20 * time.Second, 400, 300 * time.Millisecond, 20, 750}, // the second
		{25 * time.Second, 500, 300 * time.Millisecond, 20, 333}, // since the first: 300 in 15 s
		{30 * time.Second, 500, 300 * time.Millisecond, 15, 333},
		{40 * time.Second, 500, 300 * time.Millisecond, 5, 0},
		{50 * time.Second, 500, 300 * time.Millisecond, 0, 0},
	} {
		got := step(tt.at, tt.queries, tt.spent)
		if got[countQueries] != tt.want || got[timeQueries] != tt.each {
			t.Errorf("at %v: %d queries a second of %d us, want %d of %d", tt.at, got[countQueries], got[timeQueries], tt.want, tt.each)
		}
	}
}
