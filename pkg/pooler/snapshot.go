package pooler

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Snapshot is the state of a Pooler at one moment.
type Snapshot struct {
	Started    time.Time
	Clients    int // connected, including those that are logging in
	MaxClients int
	// Refusals are the clients turned away, by reason, since the start.
	Refusals map[string]uint64
	// Statements are the distinct prepared statements known, and their memory
	// in bytes.
	Statements      int
	StatementMemory int
	Pools           []PoolSnapshot // by database and user
}

// PoolSnapshot is the state of the pool for one database and user.
type PoolSnapshot struct {
	Database, User string
	Size           int // servers at the most
	Mode           PoolMode

	ClientsIdle    int // between transactions
	ClientsActive  int // with a server
	ClientsWaiting int // for a server
	ClientsLogin   int // waiting for the end of their login

	ServersActive   int // with a client
	ServersIdle     int
	ServersUsed     int // idle, to be checked before the next use
	ServersLogin    int // being logged in
	ServersTesting  int // being cleaned or checked by a query of the configuration
	ServersSettling int // being cleaned after a client that went away, or held for a cancel request

	MaxWait time.Duration // of the client that has waited longest
	Failure string        // why the last login failed; empty if it did not

	PoolStats
}

// servers returns how many servers there are, those that are being logged in
// among them.
func (s *PoolSnapshot) servers() int {
	return s.ServersActive + s.ServersIdle + s.ServersUsed + s.ServersLogin + s.ServersTesting + s.ServersSettling
}

// snapshot describes the machine.
func (m *machine) snapshot() Snapshot {
	s := Snapshot{
		Refusals:        make(map[string]uint64, numRefusals),
		Statements:      len(m.stmts.byKey),
		StatementMemory: m.stmts.memory,
	}
	for i, n := range m.refusals {
		s.Refusals[refusal(i).String()] = n
	}
	for _, p := range slices.SortedFunc(maps.Values(m.pools), func(a, b *pool) int {
		return cmp.Or(cmp.Compare(a.key.database, b.key.database), cmp.Compare(a.key.user, b.key.user))
	}) {
		s.Pools = append(s.Pools, m.poolSnapshot(p))
	}
	return s
}

func (m *machine) poolSnapshot(p *pool) PoolSnapshot {
	s := PoolSnapshot{
		Database:        p.key.database,
		User:            p.key.user,
		Size:            p.size,
		Mode:            p.mode,
		ClientsIdle:     p.clients[clientIdle] + p.clients[clientRefusing],
		ClientsActive:   p.clients[clientActive] + p.clients[clientSetting],
		ClientsWaiting:  p.clients[clientWaiting],
		ClientsLogin:    p.clients[clientGreeting],
		ServersActive:   p.servers[serverActive],
		ServersIdle:     p.servers[serverIdle],
		ServersUsed:     p.servers[serverUsed],
		ServersLogin:    p.dialing,
		ServersTesting:  p.servers[serverTesting],
		ServersSettling: p.servers[serverSettling] + p.servers[serverHeld],
		PoolStats:       p.stats,
	}
	if cl := p.waiting.head; cl != nil {
		s.MaxWait = m.now - cl.since
	}
	if p.failure != nil {
		s.Failure = p.failure.Message
	}
	return s
}
