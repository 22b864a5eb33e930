package health

// Machine turns the results of single checks into up and down by rise and
// fall, as HAProxy does: fall failures in a row take a target down, rise
// successes in a row bring it back. The first result of all decides alone when
// it is a success; a target that was never seen up is down.
type Machine struct {
	Fall, Rise int // at least 1

	up, known   bool
	consecutive int // results in a row that contradict up
}

// Result takes the next result and reports whether up has changed.
func (m *Machine) Result(ok bool) (changed bool) {
	first := !m.known
	m.known = true
	if ok == m.up {
		m.consecutive = 0
		return false
	}
	m.consecutive++
	need := m.Fall
	if ok {
		need = m.Rise
	}
	if m.consecutive < need && !(first && ok) {
		return false
	}
	m.up, m.consecutive = ok, 0
	return true
}

// Up reports whether the target is up.
func (m *Machine) Up() bool { return m.up }

// Known reports whether there was a result yet.
func (m *Machine) Known() bool { return m.known }

// Consecutive is how many results in a row contradict Up: progress towards the
// next change.
func (m *Machine) Consecutive() int { return m.consecutive }
