package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// errInterrupted is what a command returns that the user ended.
var errInterrupted = errors.New("interrupted")

func flowCommands() []command {
	return []command{
		{
			name: "show", alias: "list", args: "[KEYWORD VALUE]...",
			about: `one line for each connection that all of the keywords fit, in no order
  backend [SERVICE/]NAME | ADDRESS:PORT   the pooler
  service NAME | ADDRESS:PORT
  client ADDRESS[/BITS]                   what the client's address is, or is in
  state STATE                             ` + strings.Join(flowStates[:3], ", ") + `,
                                          ` + strings.Join(flowStates[3:6], ", ") + `,
                                          ` + strings.Join(flowStates[6:], " or ") + `
  older TIME                              age at least, as 90s, 5m or 24h
  idle TIME                               time without a packet at least
  sort age | idle | bytes                 the most first
  limit N                                 lines at most; ` + fmt.Sprint(defaultSorted) + ` if sorted`,
			prepare: prepareFlows,
		},
		{
			name: "whois", args: "ADDRESS:PORT",
			about: `whose connection it is that a pooler or PostgreSQL knows by this address:
the virtual address and the port that the balancer took for it. Several
backends can see the same one; all are shown. The exit status is 1 if there
is none.`,
			prepare: prepareWhois,
		},
	}
}

func prepareFlows(args []string) (action, error) {
	q := new(flowQuery)
	if err := keywords(args, q.keywords()...); err != nil {
		return nil, err
	}
	if err := q.check(); err != nil {
		return nil, err
	}
	return func(s *session) error { return showFlows(s, q) }, nil
}

// eachFlow calls fn for every flow until it returns false, or an error, which
// is one of writing. The flow is valid until fn returns.
func (s *session) eachFlow(fn func(*lb.Flow) (bool, error)) error {
	r, err := s.reader()
	if err != nil {
		return err
	}
	var failed error
	var flow lb.Flow // one place for all, not one for each
	err = r.Flows(func(f lb.Flow) bool {
		if s.ctx.Err() != nil {
			failed = errInterrupted
			return false
		}
		flow = f
		more, err := fn(&flow)
		if err != nil {
			failed = fmt.Errorf("writing the result: %w", err)
		}
		return more && failed == nil
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("reading the flow table: %w", err)
	}
	return nil
}

func flowList(out *output) *list[lb.Flow] {
	return newList(out, func(r *row, f *lb.Flow) {
		r.addrPort(f.Client)
		r.addrPort(f.Service)
		r.addrPort(f.SNAT)
		r.addrPort(f.Backend)
		r.cells(f.State, age(f.Age), age(f.Idle))
		r.total(f.PacketsIn)
		r.total(f.BytesIn)
		r.total(f.PacketsOut)
		r.total(f.BytesOut)
	},
		left("CLIENT"), left("SERVICE"), left("SNAT"), left("BACKEND"), left("STATE"), right("AGE"), right("IDLE"),
		right("PACKETS-IN"), right("BYTES-IN"), right("PACKETS-OUT"), right("BYTES-OUT"),
	)
}

func showFlows(s *session, q *flowQuery) error {
	fits, err := q.filter(s)
	if err != nil {
		return err
	}
	flows := flowList(s.out)
	if q.order != nil {
		return showSorted(s, q, fits, flows)
	}
	found, cut := 0, false
	err = s.eachFlow(func(f *lb.Flow) (bool, error) {
		if !fits(f) {
			return true, nil
		}
		if q.limit > 0 && found == q.limit {
			cut = true
			return false, nil
		}
		found++
		return true, flows.add(f)
	})
	if err != nil {
		return err
	}
	if err := flows.end(); err != nil {
		return err
	}
	if cut {
		return s.out.remark("Found more than %s; the others were not looked at\n", flowCount(found))
	}
	return s.out.remark("Found %s\n", flowCount(found))
}

// showSorted reads all flows, but holds no more of them than it shows.
func showSorted(s *session, q *flowQuery, fits func(*lb.Flow) bool, flows *list[lb.Flow]) error {
	limit := q.limit
	if limit == 0 {
		limit = defaultSorted
	}
	first := top{order: q.order}
	found := 0
	err := s.eachFlow(func(f *lb.Flow) (bool, error) {
		if fits(f) {
			found++
			first.offer(f, limit)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for i := range first.sorted() {
		if err := flows.add(&first.flows[i]); err != nil {
			return err
		}
	}
	if err := flows.end(); err != nil {
		return err
	}
	if found > limit {
		return s.out.remark("Found %s; these are the first %d\n", flowCount(found), limit)
	}
	return s.out.remark("Found %s\n", flowCount(found))
}

func flowCount(n int) string {
	if n == 1 {
		return "1 flow"
	}
	return fmt.Sprintf("%d flows", n)
}

func prepareWhois(args []string) (action, error) {
	if len(args) != 1 {
		return nil, usagef("want one ADDRESS:PORT")
	}
	source, err := addrPort(args[0])
	if err != nil {
		return nil, usagef("%v", err)
	}
	return func(s *session) error { return whois(s, source) }, nil
}

// whois shows the flows that have the source towards their backends.
func whois(s *session, source netip.AddrPort) error {
	flows := newList(s.out, func(r *row, f *lb.Flow) {
		r.addrPort(f.Client)
		r.addrPort(f.Service)
		r.addrPort(f.Backend)
		r.cells(f.State, age(f.Age), age(f.Idle))
	}, left("CLIENT"), left("SERVICE"), left("BACKEND"), left("STATE"), right("AGE"), right("IDLE"))
	found := 0
	err := s.eachFlow(func(f *lb.Flow) (bool, error) {
		if f.SNAT != source {
			return true, nil
		}
		found++
		return true, flows.add(f)
	})
	if err != nil {
		return err
	}
	if found == 0 && !s.out.json {
		return noSource(source)
	}
	if err := flows.end(); err != nil {
		return err
	}
	if found == 0 {
		return noSource(source)
	}
	return nil
}

// appendFlow appends the flow as encoding/json writes it, which takes five times
// as long: for a million of them that is what one waits for.
func appendFlow(b []byte, f *lb.Flow) []byte {
	b = append(b, `{"client":"`...)
	b = f.Client.AppendTo(b)
	b = append(b, `","service":"`...)
	b = f.Service.AppendTo(b)
	b = append(b, `","snat":"`...)
	b = f.SNAT.AppendTo(b)
	b = append(b, `","backend":"`...)
	b = f.Backend.AppendTo(b)
	b = append(b, `","state":"`...)
	b = append(b, f.State...) // a word of a list, nothing to escape
	b = append(b, `","age":`...)
	b = strconv.AppendInt(b, int64(f.Age), 10)
	b = append(b, `,"idle":`...)
	b = strconv.AppendInt(b, int64(f.Idle), 10)
	b = append(b, `,"packets_in":`...)
	b = strconv.AppendUint(b, f.PacketsIn, 10)
	b = append(b, `,"bytes_in":`...)
	b = strconv.AppendUint(b, f.BytesIn, 10)
	b = append(b, `,"packets_out":`...)
	b = strconv.AppendUint(b, f.PacketsOut, 10)
	b = append(b, `,"bytes_out":`...)
	b = strconv.AppendUint(b, f.BytesOut, 10)
	return append(b, '}')
}

func noSource(source netip.AddrPort) error {
	return fmt.Errorf("no flow in the table has the source %s towards its backend", source)
}

// addrPort reads an address with its port.
func addrPort(text string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(text)
	if err != nil || ap.Port() == 0 {
		return ap, fmt.Errorf("%q is no address with a port; want ADDRESS:PORT or [ADDRESS]:PORT", text)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
