package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TargetSession says which of a database's hosts will do, in libpq's words
// (target_session_attrs).
type TargetSession uint8

// The targets.
const (
	TargetAny           TargetSession = iota
	TargetReadWrite                   // transactions may write unless they say otherwise
	TargetReadOnly                    // they may not
	TargetPrimary                     // no standby
	TargetStandby                     // a standby
	TargetPreferStandby               // a standby, or else any
)

var targetNames = [...]string{"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}

// String returns libpq's word for the target.
func (t TargetSession) String() string { return targetNames[t] }

// ParseTargetSession returns the target of a name.
func ParseTargetSession(s string) (TargetSession, error) {
	for i, name := range targetNames {
		if s == name {
			return TargetSession(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not one of any, read-write, read-only, primary, standby and prefer-standby", s)
}

// single reports whether there is one right server at a time: then all
// connections go to where the last one went, and those to others are given up.
func (t TargetSession) single() bool { return t == TargetReadWrite || t == TargetPrimary }

// role is what a server is at the moment.
type role struct{ standby, readOnly bool }

// fits returns "" if a server will do, or why not.
func (t TargetSession) fits(r role) string {
	switch {
	case t == TargetReadWrite && (r.standby || r.readOnly):
		return "session is read-only"
	case t == TargetReadOnly && !r.standby && !r.readOnly:
		return "session is not read-only"
	case t == TargetPrimary && r.standby:
		return "server is in hot standby mode"
	case (t == TargetStandby || t == TargetPreferStandby) && !r.standby:
		return "server is not in hot standby mode"
	}
	return ""
}

// The parameters that tell the role. PostgreSQL reports them from version 14 on,
// at login and when they change.
const (
	paramStandby  = "in_hot_standby"
	paramReadOnly = "default_transaction_read_only"
)

// roleOf returns the role that a login reported; ok is false if it did not.
func roleOf(params paramList) (r role, ok bool) {
	for _, p := range params {
		switch p.Name {
		case paramStandby:
			r.standby, ok = p.Value == "on", true
		case paramReadOnly:
			r.readOnly = p.Value == "on"
		}
	}
	return r, ok
}

// askRole asks a server that does not report its role.
func askRole(ctx context.Context, conn net.Conn) (role, error) {
	row, err := pgwire.AskRow(ctx, conn, "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('"+paramReadOnly+"')")
	if err != nil {
		return role{}, err
	}
	if len(row) != 2 {
		return role{}, errors.New("asking server: unexpected answer")
	}
	return role{standby: row[0] == "t", readOnly: row[1] == "on"}, nil
}

// unfit is why a server that can be reached is not used.
type unfit struct{ why string }

func (u *unfit) Error() string { return u.why }

// check refuses a server that does not have the right role.
func (t TargetSession) check(ctx context.Context, conn net.Conn, params paramList) error {
	if t == TargetAny {
		return nil
	}
	r, ok := roleOf(params)
	if !ok {
		var err error
		if r, err = askRole(ctx, conn); err != nil {
			return err
		}
	}
	if why := t.fits(r); why != "" {
		return &unfit{why}
	}
	return nil
}

// retired is the epoch of a server that is to be closed when it is free.
const retired = ^uint64(0)

// retire has a server replaced: now if it is idle, else when it is free.
func (m *machine) retire(sv *server) {
	if sv.state == serverIdle || sv.state == serverUsed {
		m.closeServer(sv, reasonReconfigured)
		return
	}
	sv.epoch = retired
}

// retireWhere retires the servers of which a condition is true.
func (m *machine) retireWhere(cond func(*server) bool) {
	for _, c := range m.slots {
		if c != nil && c.sv != nil && cond(c.sv) {
			m.retire(c.sv)
		}
	}
}

// movedTo looks whether a new server shows that the primary is another host than
// before: then those of the old one are of no use, even if it still lives.
func (m *machine) movedTo(p *pool, host string) {
	if !p.db.Target.single() || host == p.host {
		return
	}
	old := p.host
	p.host = host
	if old == "" {
		return
	}
	m.log.Warn("the database has moved", "database", p.key.database, "user", p.key.user, "from", old, "to", host)
	m.retireWhere(func(sv *server) bool { return sv.pool == p && sv.host != host })
}

// roleChanged looks at a parameter that a server reports: one whose role is not
// right any more is given up.
func (m *machine) roleChanged(sv *server, name, value []byte) {
	t := sv.pool.db.Target
	var r role
	switch on := string(value) == "on"; {
	case string(name) == paramStandby:
		if r.standby = on; t == TargetReadOnly {
			return // whether transactions are read-only, too, is not known here
		}
	case sv.client == nil && string(name) == paramReadOnly:
		// In a client's session it may be the client's own setting.
		if r.readOnly = on; t != TargetReadWrite {
			return
		}
	default:
		return
	}
	if t != TargetPreferStandby && t.fits(r) != "" {
		m.retire(sv)
	}
}

var errReconfigured = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, reasonReconfigured)

// tickFastClose ends sessions that rest on servers that are to be replaced
// (server_fast_close).
func (m *machine) tickFastClose() {
	if !m.limits.fastClose {
		return
	}
	for _, c := range m.slots {
		if c != nil && c.cl != nil && c.cl.resting() && c.cl.server.epoch != c.cl.pool.epoch {
			m.refuseClient(c.cl, refusedServerLost, errReconfigured)
		}
	}
}
