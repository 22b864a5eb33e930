package health

// Passive turns what the clients of a backend meet into passive checks: it is
// shown counters of failures, such as SYNs that were refused, and tells when
// one has risen. It is pure, and its zero value is ready for use.
type Passive struct {
	seen map[passiveKey]uint64
}

type passiveKey struct{ service, backend string }

// Observe takes the present count of a backend and reports whether there were
// failures since the last one. The first count is where it begins, and so is
// one that is lower than the last: the counter was cleared.
func (p *Passive) Observe(service, backend string, failures uint64) (failed bool) {
	if p.seen == nil {
		p.seen = make(map[passiveKey]uint64)
	}
	key := passiveKey{service, backend}
	last, known := p.seen[key]
	p.seen[key] = failures
	return known && failures > last
}
