package notify

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 23, 3, 12, 0, 0, time.UTC)

var settings = DefaultSettings()

// A world is what there is to be seen, and the time.
type world struct {
	now   time.Time
	facts []Fact
}

func newWorld() *world {
	return &world{now: start, facts: []Fact{
		{Key: "backend/postgres/pooler1", Kind: "backend", Value: "up", Since: start},
		{Key: "backend/postgres/pooler2", Kind: "backend", Value: "up", Since: start},
		{Key: "vip/main", Kind: "vip", Value: "lb1", Since: start},
	}}
}

// set changes a fact.
func (w *world) set(key, value string) {
	for i := range w.facts {
		f := &w.facts[i]
		if f.Key != key || f.Value == value {
			continue
		}
		f.Value, f.Since, f.Bad, f.Severity = value, w.now, value == "down", Good
		switch {
		case f.Bad:
			f.Severity = Warning
		case f.Kind == "vip":
			f.Severity = Notice
		}
		f.Title = key + " is " + value
	}
}

func (w *world) unknown(key string, yes bool) {
	for i := range w.facts {
		if w.facts[i].Key == key {
			w.facts[i].Unknown = yes
		}
	}
}

// run lets seconds pass, looks each second, and has each message delivered.
func (w *world) run(m *Machine, seconds int, o Observation) (said []string) {
	for range seconds {
		w.now = w.now.Add(time.Second)
		o.Facts = slices.Clone(w.facts)
		if msg := m.Observe(o, w.now); msg != nil {
			said = append(said, text(msg))
			m.Delivered(msg.ID, w.now)
		}
	}
	return said
}

func text(m *Message) string {
	var parts []string
	for _, i := range m.Items {
		t := strings.TrimPrefix(i.Key, "backend/postgres/") + " " + i.Value
		if i.Again {
			t += " again"
		}
		if i.Outage > 0 {
			t += fmt.Sprintf(" after %.0f", i.Outage)
		}
		if i.Changes > 1 {
			t += fmt.Sprintf(" x%d", i.Changes)
		}
		parts = append(parts, t)
	}
	return strings.Join(parts, ", ")
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: said %q, want %q", what, got, want)
	}
}

var speaks = Observation{Speaks: true}

func TestMachine(t *testing.T) {
	w := newWorld()
	m := NewMachine(settings, "lb1", "", nil)
	expect(t, "all is well", w.run(m, 60, speaks))

	w.set("backend/postgres/pooler1", "down")
	expect(t, "within the coalescing time", w.run(m, 2, speaks))
	expect(t, "after it", w.run(m, 1, speaks), "pooler1 down")
	expect(t, "nothing new", w.run(m, 100, speaks))

	w.set("backend/postgres/pooler1", "up")
	w.run(m, 1, speaks)
	w.set("backend/postgres/pooler2", "down")
	expect(t, "two changes", w.run(m, 5, speaks), "pooler2 down, pooler1 up after 103")

	expect(t, "before the reminder", w.run(m, 3590, speaks))
	expect(t, "the reminder", w.run(m, 20, speaks), "pooler2 down again")
	expect(t, "before the next", w.run(m, 3580, speaks))
	expect(t, "the next", w.run(m, 30, speaks), "pooler2 down again")

	// Nothing is known of it: what was said stands, and is not told again.
	w.unknown("backend/postgres/pooler2", true)
	expect(t, "unknown", w.run(m, 7200, speaks))
	w.unknown("backend/postgres/pooler2", false)
	w.set("backend/postgres/pooler2", "up")
	if got := w.run(m, 5, speaks); len(got) != 1 || !strings.HasPrefix(got[0], "pooler2 up after ") {
		t.Errorf("back: %q", got)
	}
}

func TestMachineBlip(t *testing.T) {
	w := newWorld()
	m := NewMachine(settings, "lb1", "", nil)
	w.run(m, 1, speaks)
	w.set("backend/postgres/pooler1", "down")
	w.run(m, 1, speaks)
	w.set("backend/postgres/pooler1", "up")
	expect(t, "it went and came back", w.run(m, 5, speaks), "pooler1 up x2")
	expect(t, "said once", w.run(m, 100, speaks))
}

// TestMachineStorm has a pooler that changes every three seconds for an hour: the
// messages get rarer, and count.
func TestMachineStorm(t *testing.T) {
	w := newWorld()
	m := NewMachine(settings, "lb1", "", nil)
	w.run(m, 1, speaks)
	var said []string
	for i := range 1200 {
		w.set("backend/postgres/pooler1", []string{"down", "up"}[i%2])
		said = append(said, w.run(m, 3, speaks)...)
	}
	if n := len(said); n < 100 || n > 130 { // every 30 s, and some at the beginning
		t.Errorf("%d messages in an hour", n)
	}
	total := 0
	for _, s := range said {
		n := 1
		if _, after, ok := strings.Cut(s, " x"); ok {
			fmt.Sscan(after, &n)
		}
		total += n
	}
	if total < 1185 || total > 1200 {
		t.Errorf("%d changes were told of, of 1200", total)
	}
	w.set("backend/postgres/pooler1", "up")
	w.run(m, 100, speaks)
	w.set("backend/postgres/pooler1", "down")
	expect(t, "after the storm", w.run(m, 33, speaks), "pooler1 down")
}

// TestMachineRestart takes what was said over into another life.
func TestMachineRestart(t *testing.T) {
	w := newWorld()
	m := NewMachine(settings, "lb1", "", nil)
	w.run(m, 1, speaks)
	w.set("backend/postgres/pooler1", "down")
	w.run(m, 5, speaks)

	m = NewMachine(settings, "lb1", "", m.Said())
	expect(t, "nothing twice", w.run(m, 60, speaks))
	w.set("backend/postgres/pooler2", "down") // while nobody looked
	w.set("vip/main", "lb2")
	m = NewMachine(settings, "lb1", "", m.Said())
	expect(t, "nothing forgotten", w.run(m, 60, speaks), "pooler2 down, vip/main lb2")
	w.set("backend/postgres/pooler1", "up")
	m = NewMachine(settings, "lb1", "", m.Said())
	if got := w.run(m, 5, speaks); len(got) != 1 || !strings.HasPrefix(got[0], "pooler1 up after ") {
		t.Errorf("the end of what an earlier life told: %q", got)
	}
}

func TestMachineFirstLife(t *testing.T) {
	w := newWorld()
	w.set("backend/postgres/pooler1", "down")
	m := NewMachine(settings, "lb1", "", nil)
	expect(t, "trouble that nobody was told of", w.run(m, 60, speaks), "pooler1 down")
}

// TestMachineFailures has a sink that fails: backoff, Retry-After, and what is
// told afterwards is what is true then.
func TestMachineFailures(t *testing.T) {
	w := newWorld()
	m := NewMachine(settings, "lb1", "", nil)
	w.run(m, 1, speaks)
	w.set("backend/postgres/pooler1", "down")
	var tries []int
	begin, after := w.now, time.Duration(0)
	fail := func(seconds int) {
		for range seconds {
			w.now = w.now.Add(time.Second)
			if msg := m.Observe(Observation{Speaks: true, Facts: w.facts}, w.now); msg != nil {
				tries = append(tries, int(w.now.Sub(begin).Seconds()))
				m.Failed(msg.ID, after, w.now)
			}
		}
	}
	fail(70)
	if want := []int{3, 4, 6, 10, 18, 34, 66}; !slices.Equal(tries, want) {
		t.Errorf("tried after %v s, want %v", tries, want)
	}
	tries, after = nil, 1000*time.Second
	fail(1100)
	if want := []int{130, 1130}; !slices.Equal(tries, want) {
		t.Errorf("with Retry-After, tried after %v s, want %v", tries, want)
	}
	w.set("backend/postgres/pooler1", "up")
	w.set("backend/postgres/pooler2", "down")
	if got := w.run(m, 1000, speaks); len(got) != 1 || got[0] != "pooler2 down, pooler1 up x2" {
		t.Errorf("when it works again: %q", got)
	}
}

// TestMachineOneAtATime: there is no second message while one is on its way, and
// what changes meanwhile is told next.
func TestMachineOneAtATime(t *testing.T) {
	w := newWorld()
	m := NewMachine(settings, "lb1", "", nil)
	w.run(m, 1, speaks)
	w.set("backend/postgres/pooler1", "down")
	look := func(seconds int) (msg *Message) {
		for range seconds {
			w.now = w.now.Add(time.Second)
			if n := m.Observe(Observation{Speaks: true, Facts: w.facts}, w.now); n != nil {
				if msg != nil {
					t.Fatal("a second message")
				}
				msg = n
			}
		}
		return msg
	}
	first := look(10)
	w.set("backend/postgres/pooler1", "up")
	if look(100) != nil {
		t.Error("another message before the first one arrived")
	}
	m.Delivered("another id", w.now)
	if look(1) != nil {
		t.Error("an answer to another message counted")
	}
	m.Delivered(first.ID, w.now)
	if msg := look(10); msg == nil || text(msg) != "pooler1 up after 10" {
		t.Errorf("then %v", msg)
	}
}

// A node is one of two, with its report on the wire.
type node struct {
	name string
	m    *Machine
}

// TestTakeOver moves the word between two nodes at random, with poolers that fail
// and return, and checks that each change of the truth is told exactly once: the
// values of each key alternate, whoever says them.
func TestTakeOver(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := newWorld()
		nodes := []*node{{"lb1", NewMachine(settings, "lb1", "", nil)}, {"lb2", NewMachine(settings, "lb2", "", nil)}}
		told := map[string]string{"backend/postgres/pooler1": "up", "backend/postgres/pooler2": "up", "vip/main": "lb1"}
		active := 0
		for step := range 300 {
			event := random.IntN(20)
			if step < 3 {
				event = -1 // what is there at first goes without saying
			}
			switch event {
			case 0:
				active = 1 - active
				w.set("vip/main", nodes[active].name)
			case 1, 2:
				w.set(w.facts[random.IntN(2)].Key, []string{"up", "down"}[random.IntN(2)])
			case 3: // the active one's daemon is another process now
				n := nodes[active]
				n.m = NewMachine(settings, n.name, "", n.m.Said())
			}
			w.now = w.now.Add(time.Second)
			for i, n := range nodes {
				r := nodes[1-i].m.Report(w.now)
				o := Observation{Speaks: i == active, Peer: &r, Facts: slices.Clone(w.facts)}
				msg := n.m.Observe(o, w.now)
				if msg == nil {
					continue
				}
				if i != active {
					t.Fatalf("seed %d: %s speaks", seed, n.name)
				}
				for _, item := range msg.Items {
					if !item.Again && item.Changes <= 1 && told[item.Key] == item.Value {
						t.Fatalf("seed %d, %v: %s says %s %s again: %+v", seed, w.now.Sub(start), n.name, item.Key, item.Value, item)
					}
					told[item.Key] = item.Value
				}
				n.m.Delivered(msg.ID, w.now)
			}
		}
		// In the end everything was said.
		for range 60 {
			w.now = w.now.Add(time.Second)
			if msg := nodes[active].m.Observe(Observation{Speaks: true, Facts: w.facts}, w.now); msg != nil {
				for _, item := range msg.Items {
					told[item.Key] = item.Value
				}
				nodes[active].m.Delivered(msg.ID, w.now)
			}
		}
		for _, f := range w.facts {
			if told[f.Key] != f.Value {
				t.Fatalf("seed %d: %s is %s, but %s was told", seed, f.Key, f.Value, told[f.Key])
			}
		}
	}
}

// TestTakeOverAlone is one without a word of the other node: what it has seen for
// a while was said.
func TestTakeOverAlone(t *testing.T) {
	w := newWorld()
	m := NewMachine(settings, "lb2", "", nil)
	w.set("backend/postgres/pooler1", "down")
	expect(t, "a backup", w.run(m, 60, Observation{}))
	w.set("backend/postgres/pooler2", "down")
	w.run(m, 2, Observation{})
	w.set("vip/main", "lb2")
	expect(t, "the new one", w.run(m, 60, speaks), "pooler2 down, vip/main lb2")
}

func TestReport(t *testing.T) {
	said := map[string]Said{
		"down":     {Value: "down", Bad: true, Since: start, At: start},
		"vip":      {Value: "lb1", Since: start},
		"silent":   {Value: "up", Since: start},
		"lately":   {Value: "up", Since: start, At: start.Add(-time.Minute)},
		"long ago": {Value: "up", Since: start, At: start.Add(-time.Hour)},
	}
	m := NewMachine(settings, "lb1", "", said)
	r := m.Report(start)
	var keys []string
	for k := range r.Said {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if want := []string{"down", "lately", "vip"}; !slices.Equal(keys, want) {
		t.Errorf("reports %q, want %q", keys, want)
	}
	wire, err := encodeReports(map[string]Report{"slack": r})
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeReports(wire)
	if err != nil || len(back["slack"].Said) != 3 || !back["slack"].Said["down"].Since.Equal(start) {
		t.Errorf("%v, %v", back, err)
	}
	for _, other := range []string{"", `{"version": 2, "sinks": 7}`} {
		if got, err := decodeReports([]byte(other)); got != nil || err != nil {
			t.Errorf("%q: %v, %v", other, got, err)
		}
	}
	if _, err := decodeReports([]byte("{")); err == nil {
		t.Error("what makes no sense was taken")
	}
	for i := range 1000 {
		said[fmt.Sprint("more", i)] = Said{Value: "lb1", At: start}
	}
	r = NewMachine(settings, "lb1", "", said).Report(start)
	if _, ok := r.Said["down"]; !ok || len(r.Said) != maxReport {
		t.Errorf("a report of %d, with the trouble: %v", len(r.Said), ok)
	}
}
