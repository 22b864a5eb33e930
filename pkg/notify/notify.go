// Package notify tells people what changes: by a Slack incoming webhook, by a
// signed webhook of their own, by a program.
//
// What is looked at are facts, each with a value that is there at any moment, not
// events: for each sink it is kept what it was told last, and a message is the
// difference to what is seen now. So a restart neither repeats nor forgets, a
// sink that was out of reach for an hour is told what is true afterwards and not
// what was, and there is no queue that could fill up.
//
// [Machine] decides and knows no network and no clock; [Notifier] is the goroutine
// and the file around it. Only the node that speaks says anything. The other one
// keeps what was said ([Machine.Report] crosses to it), to go on from there.
package notify

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// Severity is how bad something is.
type Severity string

// The severities, the mildest first.
const (
	Good     Severity = "good"     // it is over
	Notice   Severity = "notice"   // something changed
	Warning  Severity = "warning"  // something works worse than it should
	Critical Severity = "critical" // something does not work
)

// rank orders the severities.
func (s Severity) rank() int {
	switch s {
	case Notice:
		return 1
	case Warning:
		return 2
	case Critical:
		return 3
	}
	return 0
}

// Fact is what is seen of one thing at one moment.
type Fact struct {
	Key   string // unique and stable: backend/postgres/pooler1
	Kind  string // a word of a fixed list: backend, service, vip, …
	Value string // a change of it is worth a message: up, down, the name of a node
	// Unknown says that nothing can be told now: what was said stands.
	Unknown bool
	// Bad is trouble that lasts: it is told to somebody who knows nothing yet, is
	// told again after a while, and its end is.
	Bad      bool
	Severity Severity // of a change to this value
	Title    string   // a sentence without full stop
	Reason   string   // why, in the words of who found it; may be empty
	Since    time.Time
}

// Observation is all that is seen at one moment.
type Observation struct {
	// Speaks says that this node is the one to tell people.
	Speaks bool
	// Peer is what the node that speaks has said; nil: it is not known.
	Peer  *Report
	Facts []Fact
}

// Item is one line of a message.
type Item struct {
	Key      string    `json:"key"`
	Kind     string    `json:"kind"`
	Value    string    `json:"value"`
	Was      string    `json:"was,omitempty"` // the value that was told last
	Bad      bool      `json:"bad"`
	Severity Severity  `json:"severity"`
	Title    string    `json:"title"`
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since"`
	// Outage is how long the trouble lasted that is over, in seconds.
	Outage float64 `json:"outage_seconds,omitempty"`
	// Changes is how often the value changed since the last message; more than one
	// is a flap.
	Changes int `json:"changes"`
	// Again says that nothing changed, but that it still is so.
	Again bool `json:"again,omitempty"`
}

// Message is what a sink is told at once.
type Message struct {
	// ID is the same for a message that is sent again since nobody knows whether
	// it arrived.
	ID       string    `json:"id"`
	Node     string    `json:"node"` // who speaks
	At       time.Time `json:"at"`
	Severity Severity  `json:"severity"` // the worst of the items'
	Items    []Item    `json:"items"`
	Link     string    `json:"link,omitempty"` // to the stats page
}

// newMessage puts items together.
func newMessage(node, link string, now time.Time, items []Item) Message {
	m := Message{Node: node, At: now, Severity: Good, Items: items, Link: link}
	h := sha256.New()
	fmt.Fprint(h, node)
	for _, i := range items {
		if i.Severity.rank() > m.Severity.rank() {
			m.Severity = i.Severity
		}
		// Everything that does not change from one attempt to the next.
		fmt.Fprintf(h, "\x00%s\x00%s\x00%s\x00%d\x00%t", i.Key, i.Was, i.Value, i.Since.UnixNano(), i.Again)
	}
	m.ID = hex.EncodeToString(h.Sum(nil)[:16])
	return m
}

// testMessage is one by which an operator tries his sinks.
func testMessage(node, link, by string, now time.Time) Message {
	return newMessage(node, link, now, []Item{{
		Key: "test", Kind: "test", Value: "test", Severity: Notice,
		Title: "This is a test of the notifications", Reason: "asked for by " + by, Since: now,
	}})
}

// line is an item in one line of plain text.
func (i *Item) line(now time.Time) string {
	text := i.Title
	if i.Again {
		text = "Still: " + text
	}
	if i.Reason != "" {
		text += ": " + i.Reason
	}
	return text + " (" + i.when(now) + ")"
}

// when says since when, and what else there is about the time.
func (i *Item) when(now time.Time) string {
	text := "since " + i.Since.UTC().Format("2006-01-02 15:04:05 UTC")
	if i.Bad && now.Sub(i.Since) >= time.Minute {
		text += ", for " + span(now.Sub(i.Since))
	}
	if i.Outage > 0 {
		text += ", after " + span(time.Duration(i.Outage*float64(time.Second)))
	}
	if i.Changes > 1 {
		text += fmt.Sprintf(", changed %d times", i.Changes)
	}
	return text
}

// span is a time as people say it.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// A Secret is text that is never printed: an URL that whoever knows it may post
// to, a key.
type Secret struct{ text string }

// NewSecret keeps text.
func NewSecret(text string) Secret { return Secret{text} }

// hidden stands in for a secret wherever it is printed.
const hidden = "(secret)"

// String implements fmt.Stringer.
func (Secret) String() string { return hidden }

// Format implements fmt.Formatter, for the verbs that look into a value.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }
