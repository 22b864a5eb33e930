package main

import (
	"cmp"
	"container/heap"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

const (
	// defaultSorted is how many flows a sorted list has without a limit,
	// maxSorted at the most: sorting holds them, 200 bytes each.
	defaultSorted = 1000
	maxSorted     = 100_000
)

// flowStates are the states that lb.Flow documents.
var flowStates = []string{"syn_sent", "syn_received", "established", "fin_client", "fin_backend", "time_wait", "closed", "reset"}

// flowOrders compare two flows by what they can be sorted by.
var flowOrders = map[string]func(a, b *lb.Flow) int{
	"age":   func(a, b *lb.Flow) int { return cmp.Compare(a.Age, b.Age) },
	"idle":  func(a, b *lb.Flow) int { return cmp.Compare(a.Idle, b.Idle) },
	"bytes": func(a, b *lb.Flow) int { return cmp.Compare(a.BytesIn+a.BytesOut, b.BytesIn+b.BytesOut) },
}

// A flowQuery is what flow show was asked for. Zero values are not asked for.
type flowQuery struct {
	backend, service string
	client           netip.Prefix
	state            string
	older, idle      time.Duration
	limit            int
	order            func(a, b *lb.Flow) int
}

func (q *flowQuery) keywords() []keyword {
	return []keyword{
		{"backend", "NAME", func(v string) error { q.backend = v; return notEmpty(v) }},
		{"client", "CIDR", func(v string) (err error) { q.client, err = network(v); return err }},
		{"service", "NAME", func(v string) error { q.service = v; return notEmpty(v) }},
		{"state", "STATE", func(v string) (err error) { q.state, err = match("state", v, flowStates); return err }},
		{"older", "TIME", func(v string) (err error) { q.older, err = duration(v); return err }},
		{"idle", "TIME", func(v string) (err error) { q.idle, err = duration(v); return err }},
		{"sort", "KEY", func(v string) error {
			name, err := match("key", v, []string{"age", "idle", "bytes"})
			q.order = flowOrders[name]
			return err
		}},
		{"limit", "N", func(v string) error {
			n, err := number(v, 1, 1<<31-1)
			q.limit = int(n)
			return err
		}},
	}
}

func notEmpty(v string) error {
	if v == "" {
		return fmt.Errorf("want a name or ADDRESS:PORT")
	}
	return nil
}

// check finds what does not go together.
func (q *flowQuery) check() error {
	if q.order != nil && q.limit > maxSorted {
		return usagef("limit: a sorted list has %d lines at most", maxSorted)
	}
	return nil
}

// network reads a network or a single address, which is a network of one.
func network(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%q is no network; want ADDRESS/BITS or ADDRESS", text)
	}
	return p.Masked(), nil
}

// filter makes a test of the query. Names are looked up in the pinned maps; an
// address needs no look-up, so that flows to what is no longer configured are
// found by it.
func (q *flowQuery) filter(s *session) (func(*lb.Flow) bool, error) {
	var tests []func(*lb.Flow) bool
	add := func(test func(*lb.Flow) bool) { tests = append(tests, test) }
	service, serviceErr := addrPort(q.service)
	backend, backendErr := addrPort(q.backend)
	if q.service != "" && serviceErr == nil {
		add(func(f *lb.Flow) bool { return f.Service == service })
	}
	if q.backend != "" && backendErr == nil {
		add(func(f *lb.Flow) bool { return f.Backend == backend })
	}
	if q.service != "" && serviceErr != nil || q.backend != "" && backendErr != nil {
		d, err := s.stats()
		if err != nil {
			return nil, err
		}
		destinations, err := q.destinations(d.Services, backendErr == nil)
		if err != nil {
			return nil, err
		}
		add(func(f *lb.Flow) bool { return destinations[destination{f.Service, f.Backend}] })
	}
	if q.client.IsValid() {
		add(func(f *lb.Flow) bool { return q.client.Contains(f.Client.Addr()) })
	}
	if q.state != "" {
		add(func(f *lb.Flow) bool { return f.State == q.state })
	}
	if q.older > 0 {
		add(func(f *lb.Flow) bool { return f.Age >= q.older })
	}
	if q.idle > 0 {
		add(func(f *lb.Flow) bool { return f.Idle >= q.idle })
	}
	return func(f *lb.Flow) bool {
		for _, fits := range tests {
			if !fits(f) {
				return false
			}
		}
		return true
	}, nil
}

// A destination is a backend of a service as flows have it.
type destination struct{ service, backend netip.AddrPort }

// destinations are those that the names in the query mean. A backend that is
// given by its address is looked at elsewhere.
func (q *flowQuery) destinations(services []lb.ServiceStats, byAddress bool) (map[destination]bool, error) {
	found := make(map[destination]bool)
	var serviceNames, backendNames []string
	known := false
	for _, s := range services {
		serviceNames = append(serviceNames, s.Name)
		if q.service != "" && q.service != s.Name && q.service != s.Addr.String() {
			continue
		}
		known = true
		for _, b := range s.Backends {
			names := []string{b.Name, s.Name + "/" + b.Name}
			backendNames = append(backendNames, names...)
			if byAddress || q.backend == "" || slices.Contains(names, q.backend) {
				found[destination{s.Addr, b.Addr}] = true
			}
		}
	}
	if !known {
		return nil, unknown("service", q.service, serviceNames)
	}
	if len(found) == 0 && q.backend != "" && !byAddress {
		return nil, unknown("backend", q.backend, slices.Compact(slices.Sorted(slices.Values(backendNames))))
	}
	return found, nil
}

// A top is a heap of the flows that come first in an order, the last of them
// at its root.
type top struct {
	flows []lb.Flow
	order func(a, b *lb.Flow) int
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (t *top) Len() int           { return len(t.flows) }
func (t *top) Less(i, j int) bool { return t.order(&t.flows[i], &t.flows[j]) < 0 }
func (t *top) Swap(i, j int)      { t.flows[i], t.flows[j] = t.flows[j], t.flows[i] }
func (t *top) Push(x any)         { t.flows = append(t.flows, x.(lb.Flow)) }
func (t *top) Pop() any {
	last := len(t.flows) - 1
	f := t.flows[last]
	t.flows = t.flows[:last]
	return f
}

// offer keeps f if it is among the first of those seen, of which it holds as
// many as limit says.
func (t *top) offer(f *lb.Flow, limit int) {
	if len(t.flows) < limit {
		heap.Push(t, *f)
		return
	}
	if t.order(f, &t.flows[0]) > 0 {
		t.flows[0] = *f
		heap.Fix(t, 0)
	}
}

// sorted are the flows held, the most first.
func (t *top) sorted() []lb.Flow {
	slices.SortFunc(t.flows, func(a, b lb.Flow) int { return t.order(&b, &a) })
	return t.flows
}
