package failover

import "time"

// lookEvery is how often it is looked who holds the address. A look at ours takes
// half a millisecond of a CPU that the clients need, too.
const lookEvery = 5 * time.Millisecond

// watch looks all the time whether both nodes hold the virtual address.
type watch struct {
	stop, done chan struct{}
	both       time.Duration
	err        error
}

// startWatch begins to look. Holds tells whether a node, 0 or 1, would answer
// for the address now.
func startWatch(holds func(node int) (bool, error)) *watch {
	w := &watch{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.run(holds)
	}()
	return w
}

func (w *watch) run(holds func(node int) (bool, error)) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	before := time.Now()
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		both, err := bothHold(holds)
		if err != nil {
			w.err = err
			return
		}
		now := time.Now()
		if both {
			w.both += now.Sub(before)
		}
		before = now
	}
}

// bothHold looks at both nodes. That cannot be done at one instant; but who holds
// the address before and after the other was seen to hold it has held it then,
// too. The second node comes first: as long as it holds nothing, one look is
// enough.
func bothHold(holds func(node int) (bool, error)) (bool, error) {
	for _, node := range []int{1, 0, 1} {
		if yes, err := holds(node); err != nil || !yes {
			return false, err
		}
	}
	return true, nil
}

// end returns how long both nodes held the address.
func (w *watch) end() (time.Duration, error) {
	close(w.stop)
	<-w.done
	return w.both, w.err
}
