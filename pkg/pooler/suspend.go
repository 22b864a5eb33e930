package pooler

// While it is suspended the pooler reads nothing and begins nothing: what is in
// its buffers has been sent on, everything else stays in the sockets
// (per_loop_suspend in PgBouncer's janitor.c). Clients come to rest first, since
// those who wait for a server need one to get there.

// suspend begins it.
func (m *machine) suspend() {
	m.suspended, m.suspendedAt = true, m.now
	m.tickSuspended()
}

// park reports whether a connection, ready to be read, is to stay unread.
func (m *machine) park(c *conn) bool {
	if !c.parked {
		c.parked = (c.cl != nil || m.clientsParked) && c.emptied()
	}
	return c.parked
}

// emptied reports whether nothing of a connection is in our buffers.
func (c *conn) emptied() bool {
	if c.out != nil || len(c.spill) > 0 || c.in.left > 0 || len(c.in.gather) > 0 {
		return false
	}
	if c.sv != nil {
		return c.sv.state == serverIdle || c.sv.state == serverUsed || c.sv.state == serverActive
	}
	return len(c.cl.held) == 0 && (c.cl.state == clientIdle || c.cl.state == clientActive)
}

// tickSuspended parks what can be parked. After the timeout, whoever cannot be
// is closed.
func (m *machine) tickSuspended() {
	late := m.limits.suspendTimeout > 0 && m.now-m.suspendedAt >= m.limits.suspendTimeout
	m.clientsParked = true
	for _, c := range m.slots {
		switch {
		case c == nil || c.cl == nil || m.park(c):
		case late:
			m.clientGone(c.cl, "suspend_timeout")
		default:
			m.clientsParked = false
		}
	}
	if m.clientsParked {
		for _, c := range m.slots {
			switch {
			case c == nil || c.sv == nil || m.park(c):
			case late, c.sv.state == serverTesting, c.sv.state == serverSettling:
				m.closeServer(c.sv, "close unsafe file descriptors on suspend")
			}
		}
	}
	m.lookAround()
}

// atStandstill reports whether everything is parked.
func (m *machine) atStandstill() bool {
	if !m.suspended || !m.clientsParked {
		return false
	}
	for _, c := range m.slots {
		if c != nil && !c.parked {
			return false
		}
	}
	return true
}

// goOn ends the suspension.
func (m *machine) goOn() {
	m.suspended, m.clientsParked = false, false
	for _, c := range m.slots {
		if c != nil {
			c.parked = false
			m.wake(c)
		}
	}
	for _, p := range m.pools {
		m.grow(p)
	}
	m.freed = true
}
