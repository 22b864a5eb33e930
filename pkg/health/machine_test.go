package health

import "testing"

func TestMachine(t *testing.T) {
	// Results and the state after each: + success, - failure; U up, D down.
	for _, test := range []struct{ name, results, states string }{
		{"the first success is enough", "+", "U"},
		{"a first failure leaves it down", "-", "D"},
		{"after a first failure it must rise", "-++", "DDU"},
		{"three failures in a row take it down", "+---", "UUUD"},
		{"a success in between starts the count anew", "+--+--+---", "UUUUUUUUUD"},
		{"two successes in a row bring it back", "+---+-++", "UUUDDDDU"},
		{"down stays down", "+-----", "UUUDDD"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := Machine{Fall: 3, Rise: 2}
			if m.Known() || m.Up() {
				t.Fatal("something is known before the first result")
			}
			for i, r := range test.results {
				before := m.Up()
				changed := m.Result(r == '+')
				if want := test.states[i] == 'U'; m.Up() != want || changed != (before != want) {
					t.Fatalf("after %q: up %v, changed %v", test.results[:i+1], m.Up(), changed)
				}
			}
		})
	}
}

func TestMachineShowsItsProgress(t *testing.T) {
	m := Machine{Fall: 3, Rise: 2}
	for i, step := range []struct {
		ok   bool
		want int
	}{{true, 0}, {false, 1}, {false, 2}, {false, 0}, {true, 1}, {false, 0}, {true, 1}, {true, 0}} {
		m.Result(step.ok)
		if m.Consecutive() != step.want {
			t.Errorf("step %d: %d in a row, want %d", i, m.Consecutive(), step.want)
		}
	}
}
