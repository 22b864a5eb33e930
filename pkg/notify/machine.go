package notify

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// DefaultSettings are for people who read a channel: two seconds are nothing to
// them, and a message every half a minute is as much as they can take.
func DefaultSettings() Settings {
	return Settings{Coalesce: 2 * time.Second, MaxCoalesce: 30 * time.Second, Remind: time.Hour, Settle: 35 * time.Second}
}

// Settings are the times of a Machine.
type Settings struct {
	// Coalesce is how long it waits after a change for others to go with it. It
	// doubles, up to MaxCoalesce, with each message that follows another one
	// closely, and is what it was after MaxCoalesce in which nothing had to wait.
	Coalesce, MaxCoalesce time.Duration
	// Remind is after what time trouble is told again; 0: never.
	Remind time.Duration
	// Settle is after what time a change is taken for said by the node that speaks,
	// where that one does not report what it said. It is longer than MaxCoalesce.
	Settle time.Duration
}

const (
	// firstRetry and maxRetry are the waits after a failure, doubling. A sink that
	// was mended is found within five minutes.
	firstRetry, maxRetry = time.Second, 5 * time.Minute
	// maxRetryAfter bounds what a server may ask for.
	maxRetryAfter = time.Hour
)

// Said is what was told of one fact last.
type Said struct {
	Value string    `json:"value"`
	Bad   bool      `json:"bad,omitempty"`
	Since time.Time `json:"since"` // of the value
	At    time.Time `json:"at"`    // when it was told; zero: it went without saying
}

// A seen is what is seen of a fact, between messages.
type seen struct {
	value   string
	at      time.Time // since when it is that, as far as was looked
	changes int       // since the last message
}

// Machine decides what one sink is told, and when. It is pure: events and the
// time come from the caller.
type Machine struct {
	settings   Settings
	node, link string

	said   map[string]Said
	seen   map[string]*seen
	speaks bool // at the last look

	since  time.Time     // there is something unsaid; zero: nothing is
	window time.Duration // how long is waited now
	last   time.Time     // a message was delivered; zero: none was
	flight *Message      // is being delivered
	fails  int           // in a row
	retry  time.Time     // not before
}

// NewMachine returns one for a sink that was told what said has.
func NewMachine(s Settings, node, link string, said map[string]Said) *Machine {
	m := &Machine{settings: s, node: node, link: link, said: map[string]Said{}, seen: map[string]*seen{}, window: s.Coalesce}
	maps.Copy(m.said, said)
	return m
}

// Said returns what the sink was told, by key.
func (m *Machine) Said() map[string]Said { return maps.Clone(m.said) }

// Pending reports whether there is something to be told.
func (m *Machine) Pending() bool { return !m.since.IsZero() }

// Observe takes what is seen, and returns a message to be delivered, or nil. The
// caller answers with Delivered or Failed; until then there is no other message.
func (m *Machine) Observe(o Observation, now time.Time) *Message {
	m.look(o.Facts, now)
	began := o.Speaks && !m.speaks
	m.speaks = o.Speaks
	if !o.Speaks {
		m.listen(o, now)
		return nil
	}
	if began && o.Peer != nil {
		m.goOn(*o.Peer)
	}
	items := m.items(o.Facts, now)
	switch {
	case len(items) == 0:
		m.since = time.Time{}
		return nil
	case m.since.IsZero():
		m.since = now
	}
	if m.flight != nil || now.Sub(m.since) < m.window || now.Before(m.retry) {
		return nil
	}
	msg := newMessage(m.node, m.link, now, items)
	m.flight = &msg
	return &msg
}

// Delivered tells that the message with that id has arrived.
func (m *Machine) Delivered(id string, now time.Time) {
	if m.flight == nil || m.flight.ID != id {
		return // meanwhile it was another node that spoke
	}
	for _, i := range m.flight.Items {
		m.said[i.Key] = Said{Value: i.Value, Bad: i.Bad, Since: i.Since, At: now}
		if s := m.seen[i.Key]; s != nil {
			s.changes = max(0, s.changes-i.Changes)
		}
	}
	if m.last.IsZero() || now.Sub(m.last) >= m.window+m.settings.MaxCoalesce {
		m.window = m.settings.Coalesce
	} else {
		m.window = min(2*m.window, m.settings.MaxCoalesce)
	}
	m.flight, m.last, m.fails, m.retry, m.since = nil, now, 0, time.Time{}, time.Time{}
}

// Failed tells that it has not, and after what time the other side wants to be
// asked again, 0 if it did not say.
func (m *Machine) Failed(id string, retryAfter time.Duration, now time.Time) {
	if m.flight == nil || m.flight.ID != id {
		return
	}
	wait := min(firstRetry<<min(m.fails, 16), maxRetry)
	m.fails++
	m.flight, m.retry = nil, now.Add(max(wait, min(retryAfter, maxRetryAfter)))
}

// look notes changes, and forgets what is no longer looked at.
func (m *Machine) look(facts []Fact, now time.Time) {
	there := make(map[string]bool, len(facts))
	for _, f := range facts {
		there[f.Key] = true
		if f.Unknown {
			continue
		}
		s := m.seen[f.Key]
		switch {
		case s == nil:
			s = &seen{value: f.Value, at: now}
			if m.unsaid(&f) {
				s.changes = 1
			}
			m.seen[f.Key] = s
		case s.value != f.Value:
			s.value, s.at = f.Value, now
			s.changes++
		}
	}
	gone := func(key string) bool { return !there[key] }
	maps.DeleteFunc(m.seen, func(key string, _ *seen) bool { return gone(key) })
	maps.DeleteFunc(m.said, func(key string, _ Said) bool { return gone(key) })
}

// listen keeps what the node that speaks has said: by its report, or else by what
// is seen here and old enough for it to have been said.
func (m *Machine) listen(o Observation, now time.Time) {
	m.flight, m.since, m.fails, m.retry = nil, time.Time{}, 0, time.Time{}
	if o.Peer != nil && o.Peer.Speaks {
		m.said = make(map[string]Said, len(o.Peer.Said))
		maps.Copy(m.said, o.Peer.Said)
	}
	for _, f := range o.Facts {
		s := m.seen[f.Key]
		if s == nil {
			continue
		}
		if o.Peer == nil && !f.Unknown && now.Sub(s.at) >= m.settings.Settle {
			m.said[f.Key] = Said{Value: f.Value, Bad: f.Bad, Since: f.Since, At: now}
		}
		s.changes = 0
		if m.unsaid(&f) {
			s.changes = 1
		}
	}
}

// goOn takes up where the node left off that spoke until now: between the last
// look and its end it may have said something.
func (m *Machine) goOn(r Report) {
	for key, theirs := range r.Said {
		if ours, ok := m.said[key]; m.seen[key] != nil && (!ok || theirs.At.After(ours.At)) {
			m.said[key] = theirs
		}
	}
}

// unsaid reports whether a fact is not what the sink was told.
func (m *Machine) unsaid(f *Fact) bool {
	said, ok := m.said[f.Key]
	return ok && said.Value != f.Value || !ok && f.Bad
}

// items is what the sink is to be told. What is well and was never spoken of needs
// no message.
func (m *Machine) items(facts []Fact, now time.Time) (items []Item) {
	for _, f := range facts {
		if f.Unknown {
			continue
		}
		said, ok := m.said[f.Key]
		if !ok && !f.Bad && m.seen[f.Key].changes == 0 {
			m.said[f.Key] = Said{Value: f.Value, Since: f.Since} // silently, at no time
			continue
		}
		i := Item{
			Key: f.Key, Kind: f.Kind, Value: f.Value, Was: said.Value, Bad: f.Bad, Severity: f.Severity,
			Title: f.Title, Reason: f.Reason, Since: f.Since, Changes: m.seen[f.Key].changes,
		}
		switch {
		case !ok || said.Value != f.Value:
			if said.Bad && !f.Bad {
				i.Outage = max(0, f.Since.Sub(said.Since)).Seconds()
			}
		case i.Changes > 1: // it went and came back
		case f.Bad && m.settings.Remind > 0 && now.Sub(said.At) >= m.settings.Remind:
			i.Again, i.Since = true, said.Since // in the daemon's earlier life, perhaps
		default:
			continue
		}
		items = append(items, i)
	}
	slices.SortStableFunc(items, func(a, b Item) int { return cmp.Compare(b.Severity.rank(), a.Severity.rank()) })
	return items
}
