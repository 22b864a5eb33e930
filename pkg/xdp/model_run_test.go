package xdp

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

const (
	modelClients = 300
	modelRing    = 64
	modelPorts   = 48 // of each backend: fewer than there are clients
	modelSteps   = 200_000
	modelTime    = 5 * time.Second // for each family, unless steps are asked for
)

// setting reads a number from the environment: PGSTEER_STEPS are the steps of
// the model test in each family, which then takes its time, PGSTEER_SEED what
// they are drawn by.
func setting(t *testing.T, name string) (uint64, bool) {
	t.Helper()
	s, ok := os.LookupEnv(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n, true
}

// Random segments, in order and out of it, lost, late and twice, of a few
// hundred clients and their backends, while backends come and go, change and
// refuse: the program does what the model does.
func TestModel(t *testing.T) {
	f := newDualFixture(t, func(c *Config) {
		c.HalfOpenFlows, c.SNATLow, c.SNATHigh = modelRing, 20000, 20000+modelPorts-1
	})
	steps, all := setting(t, "PGSTEER_STEPS")
	if !all {
		steps = modelSteps / 2
	}
	seed, ok := setting(t, "PGSTEER_SEED")
	if !ok {
		seed = uint64(time.Now().UnixNano())
	}
	for _, c := range families {
		t.Run(c.name, func(t *testing.T) {
			r := newModelRun(f.sub(t), c, seed)
			began := time.Now()
			for r.steps < steps && (all || time.Since(began) < modelTime) {
				r.step()
				r.steps++
				if r.steps%100 == 0 {
					r.compareCounts()
				}
				if r.steps%5000 == 0 {
					r.compareFlows()
				}
			}
			r.compareCounts()
			r.compareFlows()
			t.Logf("%d steps in %s, %d flows opened, seed %d: %v", r.steps, time.Since(began).Round(time.Millisecond), r.opened(), seed, r.m.verdicts)
			if r.steps >= modelSteps/4 {
				r.wantVariety()
			}
		})
	}
}

// modelRun drives the program and the model by the same segments.
type modelRun struct {
	*fixture
	m     *model
	rng   *rand.Rand
	seed  uint64
	steps uint64

	client int // whose turn it is
	ends   []ends
	recent [64]event // the latest, some of which come again
	base   map[string]uint64
	out    []byte

	handshakes *ebpf.Map
}

// ends are what a client and its backend send next.
type ends struct {
	client, backend uint32
}

// event is a segment and where it comes from.
type event struct {
	what    string
	client  int   // or
	backend tuple // with a port
	segment segment
}

func newModelRun(f *fixture, c cast, seed uint64) *modelRun {
	s := c.service(5)
	for i, w := range []uint16{1, 2, 3, 1, 5} {
		s.Backends[i].Weight = w
	}
	r := &modelRun{
		fixture: f, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), ends: make([]ends, modelClients),
		base: make(map[string]uint64), out: make([]byte, 512),
	}
	name := balancerMapHandshakes
	if c.vip.Addr().Is6() {
		name = balancer6MapHandshakes6
	}
	r.handshakes = f.pinned(name)
	f.t.Cleanup(func() { r.handshakes.Close() })
	r.m = newModel(c, s, modelRing, modelPorts)
	r.m.triedBy = func(ticket uint32) uint64 {
		if c.vip.Addr().Is4() {
			return handshakeAt[addr4](r, ticket).Tried
		}
		return handshakeAt[addr6](r, ticket).Tried
	}
	f.serve(s)
	f.setBucket(bucketRST, 1<<40) // no limit
	for _, v := range f.verdictCounts() {
		r.base[v.Name] = v.Count
	}
	return r
}

func handshakeAt[A address](r *modelRun, ticket uint32) (row handshakeRow[A]) {
	r.must(r.handshakes.Lookup(ticket%modelRing, &row))
	return row
}

func (r *modelRun) failf(format string, args ...any) {
	r.t.Helper()
	var b strings.Builder
	for i := range r.recent {
		e := r.recent[(int(r.steps)+1+i)%len(r.recent)]
		if i >= len(r.recent)-20 && e.what != "" {
			fmt.Fprintf(&b, "\n\t%s: client %d, backend %+v, flags %#x, sequence %d, acknowledgement %d, %d bytes",
				e.what, e.client, e.backend, e.segment.flags, e.segment.seq, e.segment.ack, len(e.segment.payload))
		}
	}
	r.t.Fatalf("seed %d, step %d: %s\nthe last ones:%s", r.seed, r.steps, fmt.Sprintf(format, args...), b.String())
}

// step is one segment, or one change of the configuration.
func (r *modelRun) step() {
	switch n := r.rng.IntN(1000); {
	case n < 6:
		r.changeBackend()
	case n < 7:
		r.changeService()
	case n < 9:
		r.sweepSome()
	case n < 11:
		r.forgive()
	case n < 12 && r.rng.IntN(10) == 0:
		r.flush()
	case n < 60:
		r.send(r.recent[r.rng.IntN(len(r.recent))], "again")
	case n < 150:
		r.wild(r.rng.IntN(modelClients))
	default:
		if r.rng.IntN(6) == 0 { // else some more of the same one
			r.client = r.rng.IntN(modelClients)
		}
		r.natural(r.client)
	}
}

// send sends a segment through the program and shows it to the model.
func (r *modelRun) send(e event, what string) {
	if !e.segment.src.IsValid() { // nothing to send again yet
		return
	}
	e.what = what
	r.recent[int(r.steps)%len(r.recent)] = e
	opts := ebpf.RunOptions{Data: e.segment.frame(), DataOut: r.out}
	var got outcome
	var err error
	r.m.before = time.Now()
	got.action, err = r.progs.Balancer.Run(&opts)
	r.m.after = time.Now()
	r.must(err)
	if got.action == xdpTX {
		got.out = decode(r.t, opts.DataOut)
		got.at = r.m.tupleOf(got.out)
	}
	if e.backend.port != 0 {
		err = r.m.fromBackend(e.backend, e.segment, got)
	} else {
		err = r.m.fromClient(e.client, e.segment, got)
	}
	if err != nil || r.t.Failed() {
		r.failf("%v", err)
	}
	if r.m.pin || r.m.inexact {
		r.settle()
	}
}

// settle takes time out of it: who refused is passed over until it is forgiven.
// And the rotor is read where the model cannot know it.
func (r *modelRun) settle() {
	r.editLoad(func(row *loadRow) {
		for slot, c := range r.m.counts {
			row.Suspect[slot] = 0
			if c.suspect {
				row.Suspect[slot] = 1 << 62
			}
		}
		if r.m.inexact {
			r.m.rotor = int(row.Rotor)
		}
	})
	r.m.pin, r.m.inexact = false, false
}

func (r *modelRun) forgive() {
	for slot := range r.m.counts {
		r.m.counts[slot].suspect = false
	}
	r.settle()
}

func (r *modelRun) editLoad(edit func(*loadRow)) {
	var row loadRow
	r.must(r.tables.loads.Lookup(uint32(0), &row))
	edit(&row)
	r.must(r.tables.loads.Put(uint32(0), row))
}

// age has a half-open flow be a second older.
func (r *modelRun) age(fl *modelFlow) {
	if r.m.vip.Addr().Is4() {
		ageHandshake[addr4](r.fixture, r.handshakes, fl.ticket%modelRing)
	} else {
		ageHandshake[addr6](r.fixture, r.handshakes, fl.ticket%modelRing)
	}
	fl.openedFrom, fl.openedTo = fl.openedFrom.Add(-time.Second), fl.openedTo.Add(-time.Second)
}

func (r *modelRun) changeBackend() {
	if r.rng.IntN(50) == 0 {
		r.takeAllOut()
		return
	}
	slot := r.rng.IntN(len(r.m.Backends))
	if r.m.gone[slot] {
		return
	}
	b := &r.m.Backends[slot]
	switch r.rng.IntN(5) {
	case 0, 1:
		b.State = []lb.State{lb.Up, lb.Up, lb.Up, lb.Draining, lb.Down, lb.Maintenance}[r.rng.IntN(6)]
	case 2:
		b.Weight = uint16(1 + r.rng.IntN(6))
	case 3:
		b.MaxConnections = []uint32{0, 0, 10, 20, 30}[r.rng.IntN(5)]
	case 4:
		b.Backup = slot > 1 && r.rng.IntN(3) == 0
	}
	r.must(r.SetBackend(r.m.Name, *b))
}

// takeAllOut leaves nobody to take new flows, until one comes back by chance.
func (r *modelRun) takeAllOut() {
	for slot := range r.m.Backends {
		if r.m.gone[slot] {
			continue
		}
		b := &r.m.Backends[slot]
		b.State = lb.Down
		r.must(r.SetBackend(r.m.Name, *b))
	}
}

// changeService takes the last backend out or in again, or changes what is not
// by backend.
func (r *modelRun) changeService() {
	last := len(r.m.Backends) - 1
	switch r.rng.IntN(3) {
	case 0:
		if r.m.gone[last] {
			r.m.gone[last] = false
		} else {
			r.m.free(last)
		}
	case 1:
		r.m.Scheduler = []lb.Scheduler{lb.LeastConn, lb.LeastConn, lb.RoundRobin, lb.RandomTwo}[r.rng.IntN(4)]
	case 2:
		r.m.DropWhenFull = r.rng.IntN(2) == 0
		r.m.ClientAddress = r.rng.IntN(2) == 0
	}
	s := r.m.Service
	if r.m.gone[last] {
		s.Backends = s.Backends[:last]
	}
	r.must(r.SetServices([]lb.Service{s}))
}

// sweepSome has the time be up of the flows in one state.
func (r *modelRun) sweepSome() {
	const long = time.Hour
	to := Timeouts{SYN: long, Established: long, FIN: long, TimeWait: long, Closed: long, Reset: long}
	const now = -time.Hour // however coarse the program's clock is
	switch r.rng.IntN(5) {
	case 0:
		to.Closed = now
		r.m.sweep("closed")
	case 1:
		to.TimeWait = now
		r.m.sweep("time_wait")
	case 2:
		to.Reset = now
		r.m.sweep("reset")
	case 3:
		if r.rng.IntN(4) == 0 {
			to.FIN = now
			r.m.sweepFIN()
		}
	case 4:
		if r.rng.IntN(4) == 0 {
			to.SYN = now
			r.m.sweepHalfOpen()
		}
	}
	r.cfg.Timeouts = to
	r.must(r.fixture.sweep())
}

func (r *modelRun) flush() {
	n, err := r.FlushFlows(r.m.vip.Addr())
	r.must(err)
	if n != len(r.m.flows) {
		r.failf("%d flows were flushed, there are %d", n, len(r.m.flows))
	}
	for _, fl := range r.m.flows {
		r.m.remove(fl)
	}
}
