package pooler

// prefill makes the pools that keep min_pool_size servers though nobody has asked
// for them yet: those of databases whose user is given. It runs in the loop.
func (p *Pooler) prefill() {
	s := p.conf()
	for name := range s.Databases {
		if d := s.database(name); d.User != "" && d.MinPoolSize > 0 {
			p.loop.m.poolFor(d, d.User)
		}
	}
}
