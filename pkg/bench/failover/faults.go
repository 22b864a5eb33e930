package failover

import (
	"context"
	"time"
)

// fault is something that happens to the first node of a stack, which holds the
// virtual address.
type fault struct {
	name string
	// prepare, if set, leads to where the fault begins. It is not measured.
	prepare func(*side, context.Context) error
	steps   []step
	// reachable says that the node stays on the LAN: only then it tells anything
	// that both nodes hold the address.
	reachable bool
}

// step is a part of a fault: something is done and the clients are watched. At
// its end those that hold a connection use it.
type step struct {
	strike func(*side, context.Context) error
	// done, if set, waits for what comes of it.
	done func(*side, context.Context) error
	// lasts is how long the clients are watched at least.
	lasts time.Duration
}

const (
	// frozen is how long a node hangs.
	frozen = 10 * time.Second
	// cut is how long the nodes do not hear each other: long enough for
	// keepalived to become active (3.6 s) and to announce that once more (5 s
	// later).
	cut = 10 * time.Second
	// settle is how long a change is watched that the clients may not notice.
	settle = 2 * time.Second
)

var faults = []fault{
	{name: "kill", reachable: true, steps: []step{{strike: (*side).kill, done: (*side).taken}}},
	{name: "poweroff", steps: []step{{strike: (*side).powerOff, done: (*side).taken}}},
	{name: "freeze", reachable: true, steps: []step{
		{strike: (*side).freeze, done: (*side).taken, lasts: frozen},
		{strike: (*side).thaw, done: (*side).first, lasts: settle},
	}},
	{name: "resign", reachable: true, steps: []step{{strike: (*side).resign, done: (*side).taken}}},
	{name: "return", reachable: true, prepare: (*side).standDown, steps: []step{
		{strike: (*side).start, done: (*side).first, lasts: settle},
	}},
	{name: "cut", reachable: true, steps: []step{
		{strike: (*side).part, lasts: cut},
		{strike: (*side).join, done: (*side).first, lasts: settle},
	}},
}
