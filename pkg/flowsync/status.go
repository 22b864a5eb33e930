package flowsync

import "time"

// Status is the state of a link at one moment. All counters count from Open.
type Status struct {
	Node        string    `json:"node"` // ours
	Listen      string    `json:"listen"`
	Peer        string    `json:"peer"`
	Key         string    `json:"key"`   // fingerprint of the one that is shown
	Keys        []string  `json:"keys"`  // of all that are accepted, Key first
	Dials       bool      `json:"dials"` // this node connects to the other
	Connected   bool      `json:"connected"`
	Since       time.Time `json:"since"` // of Connected
	Connections uint64    `json:"connections"`
	PeerNode    string    `json:"peer_node"` // of the present connection, or the last
	PeerKey     string    `json:"peer_key"`  // the one that it shows there
	Version     uint16    `json:"version"`   // of the protocol
	// Heard is the time since the peer's last heartbeat, nanoseconds; -1: never.
	Heard time.Duration `json:"heard"`

	Synced     bool `json:"synced"`      // we have a full copy of the peer's flows
	PeerSynced bool `json:"peer_synced"` // it has one of ours
	// CopyAge is how old our copy of the peer's flows is, nanoseconds: 0 while
	// synced; -1: there never was one.
	CopyAge time.Duration `json:"copy_age"`
	Copying bool          `json:"copying"` // a full copy of ours is under way
	Queue   int           `json:"queue"`   // changes that wait to be sent
	// Lag is the age of the oldest change that the peer has not acknowledged,
	// nanoseconds.
	Lag time.Duration `json:"lag"`

	Sent     SentCounts     `json:"sent"`
	Received ReceivedCounts `json:"received"`
	// Resyncs and Failures have every reason, also those that never occurred.
	Resyncs   []Count `json:"resyncs"`
	Failures  []Count `json:"handshake_failures"`
	LastError string  `json:"last_error"`
	// Differences says, a sentence each, where the peer's configuration of
	// services and backends is not ours.
	Differences []string `json:"differences"`
	// PeerState is what the peer said of itself last, Heard ago; nil: nothing.
	PeerState *State `json:"peer_state"`
}

// Count is how often something happened for one reason.
type Count struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

// Kind is how many records there were of one kind.
type Kind struct {
	Name  string
	Count uint64
}

// SentCounts is about flows of this node.
type SentCounts struct {
	Changes   uint64 `json:"changes"`   // records of flows that changed
	Closed    uint64 `json:"closed"`    // flows that ended
	Copied    uint64 `json:"copied"`    // records of full copies and refreshes
	Unfit     uint64 `json:"unfit"`     // not sent: their addresses are of mixed families
	Refreshes uint64 `json:"refreshes"` // passes for counters
	Overflows uint64 `json:"overflows"` // times that the queue was full
	Lost      uint64 `json:"lost"`      // times that the datapath lost changes
	Bytes     uint64 `json:"bytes"`
}

// ReceivedCounts is about flows of the peer.
type ReceivedCounts struct {
	Changes  uint64 `json:"changes"`
	Closed   uint64 `json:"closed"`
	Copied   uint64 `json:"copied"`
	Outdated uint64 `json:"outdated"` // of Copied, not stored: they had changed since
	Stored   uint64 `json:"stored"`   // replicas added or updated
	Removed  uint64 `json:"removed"`  // since they ended
	Swept    uint64 `json:"swept"`    // not in a full copy, so forgotten
	Unknown  uint64 `json:"unknown"`  // not stored: their backend is not configured here
	Refused  uint64 `json:"refused"`  // not stored: the table has refused them
	Copies   uint64 `json:"copies"`   // full copies completed
	Gaps     uint64 `json:"gaps"`     // times that the peer had lost changes
	Failures uint64 `json:"failures"` // errors of the table
	Bytes    uint64 `json:"bytes"`
}

// Kinds returns the counts of records by the words of metrics: stable, in the
// order of the fields.
func (c SentCounts) Kinds() []Kind {
	return []Kind{{"changes", c.Changes}, {"closed", c.Closed}, {"copied", c.Copied}, {"unfit", c.Unfit}}
}

// Kinds returns the counts of records by the words of metrics: stable, in the
// order of the fields.
func (c ReceivedCounts) Kinds() []Kind {
	return []Kind{
		{"changes", c.Changes}, {"closed", c.Closed}, {"copied", c.Copied}, {"outdated", c.Outdated}, {"stored", c.Stored},
		{"removed", c.Removed}, {"swept", c.Swept}, {"unknown", c.Unknown}, {"refused", c.Refused},
	}
}

// tally is what a link keeps for Status beside its machines.
type tally struct {
	connected     bool
	since         time.Time
	connections   uint64
	node          string
	key           string // the peer's
	version       uint16
	synced        bool
	fresh         time.Duration // when synced changed last; never: it did not
	received      receiveCounts
	bytesSent     uint64
	bytesReceived uint64
	failures      [numFailures]uint64
	lastError     string
	differences   []string
}

// add adds up counts.
func (c *receiveCounts) add(o receiveCounts) {
	c.changes += o.changes
	c.copied += o.copied
	c.closed += o.closed
	c.outdated += o.outdated
	c.stored += o.stored
	c.removed += o.removed
	c.unknown += o.unknown
	c.refused += o.refused
	c.swept += o.swept
	c.copies += o.copies
	c.gaps += o.gaps
	c.failures += o.failures
}

// Status returns the present state.
func (l *Link) Status() Status {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	t, s, r := &l.status, &l.sender, &l.status.received
	out := Status{
		Node: l.config.Node, Listen: l.config.Listen.String(), Peer: l.config.Peer.String(),
		Key: l.config.Key.Fingerprint(), Keys: l.config.Key.Fingerprints(), PeerKey: t.key, Dials: l.config.dials(),
		Connected: t.connected, Since: t.since, Connections: t.connections, PeerNode: t.node, Version: t.version,
		Heard: -1, Synced: t.synced, PeerSynced: s.synced, CopyAge: -1,
		Copying: s.wants || s.pass.active && s.pass.full, Queue: s.queue.n, Lag: s.lag(now),
		Sent: SentCounts{
			Changes: s.counts.changes, Closed: s.counts.closed, Copied: s.counts.copied, Unfit: s.counts.unfit,
			Refreshes: s.counts.refreshes, Overflows: s.counts.overflows, Lost: s.counts.lost, Bytes: t.bytesSent,
		},
		Received: ReceivedCounts{
			Changes: r.changes, Closed: r.closed, Copied: r.copied, Outdated: r.outdated, Stored: r.stored,
			Removed: r.removed, Swept: r.swept, Unknown: r.unknown, Refused: r.refused, Copies: r.copies,
			Gaps: r.gaps, Failures: r.failures, Bytes: t.bytesReceived,
		},
		LastError: t.lastError, Differences: append([]string{}, t.differences...),
	}
	if l.hasPeer {
		said := l.peer // replaced as a whole, never changed
		out.Heard, out.PeerState = max(0, now-l.heard), &said
	}
	switch {
	case t.synced:
		out.CopyAge = 0
	case t.fresh != never:
		out.CopyAge = max(0, now-t.fresh)
	}
	for i, n := range s.counts.resyncs {
		out.Resyncs = append(out.Resyncs, Count{Resync(i).String(), n})
	}
	for i, n := range t.failures {
		out.Failures = append(out.Failures, Count{Failure(i).String(), n})
	}
	return out
}
