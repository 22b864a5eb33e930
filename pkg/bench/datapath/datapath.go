// Package datapath measures what one packet costs the XDP program, in
// nanoseconds and as a multiple of an empty program that sends its packet back.
//
// The program runs in the kernel by BPF_PROG_RUN, with the maps of a balancer
// that was set up by pkg/xdp. No network card is in it, and no clock of ours.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/bench"
)

// Options say how much is measured.
type Options struct {
	Rounds  int // how often each row is measured, in turn with all others
	Packets int // a round, of established flows and to the empty program
	Flows   int // established ones that the 100k rows walk over, at most 131,072
	SYNs    int // a round, at most 131,072; the table is emptied after each
}

// DefaultOptions take about two minutes.
//
// 20,000 new flows fill 4 % of the flow table and 12 % of three poolers' ports,
// so that it is the program that is measured, and not how it finds one of the
// last free ports. 100,000 established ones take 34 MB: no cache holds them.
var DefaultOptions = Options{Rounds: 31, Packets: 1_000_000, Flows: 100_000, SYNs: 20_000}

// Check says what cannot be measured, by the names of pgsteer-bench's options.
func (o Options) Check() error {
	switch {
	case o.Rounds < 1:
		return fmt.Errorf("-rounds is %d, and must be 1 at least", o.Rounds)
	case o.Packets < 1:
		return fmt.Errorf("-packets is %d, and must be 1 at least", o.Packets)
	case o.Flows < 1 || o.Flows > maxTuples:
		return fmt.Errorf("-flows is %d, and must be 1 to %d", o.Flows, maxTuples)
	case o.SYNs < 2 || o.SYNs > maxTuples:
		return fmt.Errorf("-syns is %d, and must be 2 to %d", o.SYNs, maxTuples)
	}
	return nil
}

// The rows. Their names are those of the suite.
const (
	forwardHot = "datapath.forward.hot"
	reverseHot = "datapath.reverse.hot"
	forward100 = "datapath.forward.100k"
	reverse100 = "datapath.reverse.100k"
	syn3       = "datapath.syn.3"
	syn64      = "datapath.syn.64"
	reset      = "datapath.rst"
	pass       = "datapath.pass"
)

// Suite returns the rows of the datapath. It needs root.
func Suite(o Options) bench.Suite {
	return bench.Suite{
		Names: []string{forwardHot, reverseHot, forward100, reverse100, syn3, syn64, reset, pass},
		Run: func(ctx context.Context, names []string, log bench.Log, emit func(bench.Result)) error {
			return run(ctx, o, names, log, emit)
		},
	}
}

// row is one of them, ready to be measured.
type row struct {
	name        string
	node        *node
	harness     *harness // nil: the program leaves its packet alone
	frame       []byte   // without a harness
	packets     int      // a round
	calibration int      // packets to the empty program
	action      uint32   // what each of them must end with
	verdict     string   // what each must be counted under
	flows       int      // different ones the harness has; each round goes on where the last left off
	forget      bool     // the flows that a round has opened

	next   int       // flow
	values []float64 // nanoseconds, without the harness
	empty  []float64 // nanoseconds of the empty program
	extra  []float64 // nanoseconds of the harness
}

// world is what the rows need.
type world struct {
	nodes []*node
	rows  []*row
	empty *harness // for its empty program
}

func run(ctx context.Context, o Options, names []string, log bench.Log, emit func(bench.Result)) (err error) {
	w, err := newWorld(ctx, o, names, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	err = onOneCPU(func() error {
		for round := range o.Rounds {
			for _, r := range w.rows {
				if err := r.round(ctx, w.empty.objs.Empty); err != nil {
					return fmt.Errorf("%s: %w", r.name, err)
				}
			}
			if round%10 == 9 || round == o.Rounds-1 {
				log("datapath: round %d of %d", round+1, o.Rounds)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range w.rows {
		result := bench.Compare(bench.Result{Name: r.name, Unit: "ns", Peer: "empty XDP_TX"}, r.values, r.empty)
		result.Extra = map[string]float64{
			"value_min": slices.Min(r.values), "peer_min": slices.Min(r.empty),
			"harness": bench.Quantile(r.extra, 0.5),
		}
		emit(result)
	}
	return nil
}

// newWorld sets up what the named rows need: a balancer with established flows,
// and one for each size of service that takes new ones.
func newWorld(ctx context.Context, o Options, names []string, log bench.Log) (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	// Its flow is of no concern: only its empty program runs.
	if w.empty, err = newHarness([][]byte{fromClient(0, flagACK).frame()}); err != nil {
		return w, err
	}
	if err := w.established(ctx, o, names, log); err != nil {
		return w, err
	}
	for name, backends := range map[string]int{syn3: 3, syn64: 64} {
		if !slices.Contains(names, name) {
			continue
		}
		if err := w.opening(ctx, o, name, backends); err != nil {
			return w, err
		}
	}
	slices.SortFunc(w.rows, func(a, b *row) int { return slices.Index(names, a.name) - slices.Index(names, b.name) })
	return w, nil
}

// established adds the rows of packets that open no flow.
func (w *world) established(ctx context.Context, o Options, names []string, log bench.Log) error {
	if !slices.ContainsFunc(names, func(n string) bool { return !strings.HasPrefix(n, "datapath.syn.") }) {
		return nil
	}
	n, err := w.addNode(ctx, 3)
	if err != nil {
		return err
	}
	log("datapath: opening %d flows", o.Flows)
	flows, err := n.openFlows(ctx, o.Flows)
	if err != nil {
		return err
	}
	other := fromClient(0, flagACK)
	other.dst = otherHost
	for _, r := range []struct {
		row
		frames [][]byte
	}{
		{row{name: forwardHot, packets: o.Packets, action: xdpTX, verdict: "tx_forward"}, flows.forward[:1]},
		{row{name: reverseHot, packets: o.Packets, action: xdpTX, verdict: "tx_reverse"}, flows.reverse[:1]},
		{row{name: forward100, packets: o.Packets, action: xdpTX, verdict: "tx_forward"}, strided(flows.forward)},
		{row{name: reverse100, packets: o.Packets, action: xdpTX, verdict: "tx_reverse"}, strided(flows.reverse)},
		{
			row{name: reset, packets: o.Packets, action: xdpTX, verdict: "tx_rst_client"},
			[][]byte{fromClient(o.Flows, flagACK).frame()},
		},
		{row{name: pass, packets: o.Packets, action: xdpPass, verdict: "pass_not_vip", frame: other.frame()}, nil},
	} {
		if !slices.Contains(names, r.name) {
			continue
		}
		r.node, r.calibration = n, o.Packets
		if err := w.addRow(r.row, r.frames); err != nil {
			return err
		}
	}
	return nil
}

// opening adds a row of SYNs. Clients come back after as many rounds as the
// harness has room for: what the balancer may remember of them has gone by
// then, as with clients that are new.
func (w *world) opening(ctx context.Context, o Options, name string, backends int) error {
	n, err := w.addNode(ctx, backends)
	if err != nil {
		return err
	}
	var syns [][]byte
	for i := range maxTuples / o.SYNs * o.SYNs {
		syns = append(syns, synOf(i))
	}
	r := row{name: name, node: n, packets: o.SYNs, calibration: o.Packets, action: xdpTX, verdict: "tx_new", forget: true}
	return w.addRow(r, syns)
}

func (w *world) addNode(ctx context.Context, backends int) (*node, error) {
	n, err := newNode(ctx, backends)
	if err != nil {
		return nil, err
	}
	w.nodes = append(w.nodes, n)
	return n, nil
}

func (w *world) addRow(r row, frames [][]byte) (err error) {
	if r.flows = len(frames); r.flows > 0 {
		if r.harness, err = newHarness(frames); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	w.rows = append(w.rows, &r)
	return nil
}

// Close removes everything.
func (w *world) Close() error {
	var errs []error
	for _, r := range w.rows {
		if r.harness != nil {
			errs = append(errs, r.harness.Close())
		}
	}
	if w.empty != nil {
		errs = append(errs, w.empty.Close())
	}
	for _, n := range w.nodes {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// round measures once more when a signal has spoiled a measurement: the
// runtime sends itself some.
func (r *row) round(ctx context.Context, empty *ebpf.Program) error {
	for {
		err := r.measure(ctx, empty)
		if !errors.Is(err, errInterrupted) {
			return err
		}
		if r.forget {
			if err := r.node.forgetFlows(); err != nil {
				return err
			}
		}
	}
}

// measure measures the empty program, the harness with it, and the program.
func (r *row) measure(ctx context.Context, empty *ebpf.Program) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	frame := r.frame
	if r.harness != nil {
		frame = r.harness.frame
	}
	floor, action, err := timeProgram(empty, frame, r.calibration)
	if err == nil && action != xdpTX {
		err = fmt.Errorf("the empty program answered %d", action)
	}
	if err != nil {
		return err
	}
	harness := 0.0
	if r.harness != nil {
		with, action, err := r.harness.time(empty, r.calibration, r.next)
		if err == nil && action != xdpTX {
			err = fmt.Errorf("the empty program answered the harness %d", action)
		}
		if err != nil {
			return err
		}
		harness = with - floor
	}
	raw, err := r.checked(func() (float64, uint32, error) {
		if r.harness == nil {
			return timeProgram(r.node.program, frame, r.packets)
		}
		return r.harness.time(r.node.program, r.packets, r.next)
	})
	if err != nil {
		return err
	}
	r.values = append(r.values, raw-harness)
	r.empty = append(r.empty, floor)
	r.extra = append(r.extra, harness)
	if r.flows > r.packets {
		r.next = (r.next + r.packets) % r.flows
	}
	if r.forget {
		return r.node.forgetFlows()
	}
	return nil
}

// checked makes sure that every packet had the verdict that the row is about: a
// program that does nothing is fast, too. BPF_PROG_RUN tells only what it said
// to the last one, so the program's own counts are asked for the rest.
func (r *row) checked(send func() (float64, uint32, error)) (float64, error) {
	before, err := r.node.verdicts()
	if err != nil {
		return 0, err
	}
	took, action, err := send()
	if err != nil {
		return 0, err
	}
	if action != r.action {
		return 0, fmt.Errorf("the program answered %d, not %d", action, r.action)
	}
	after, err := r.node.verdicts()
	if err != nil {
		return 0, err
	}
	for name, count := range after {
		want := uint64(0)
		if name == r.verdict {
			want = uint64(r.packets)
		}
		if got := count - before[name]; got != want {
			return 0, fmt.Errorf("%d of %d packets were counted under %s, not %d", got, r.packets, name, want)
		}
	}
	return took, nil
}
