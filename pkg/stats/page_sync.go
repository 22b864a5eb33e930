package stats

import (
	"fmt"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

// A syncPart is the replication in words.
type syncPart struct {
	Class, State string // of the coloured line: its colour, and a sentence
	Facts        []fact
	Tables       []countTable
}

// newSyncPart returns nil when there is no replication.
func newSyncPart(s *Snapshot) *syncPart {
	if s.Sync == nil {
		return nil
	}
	p := &syncPart{Facts: syncFacts(s)}
	p.Class, p.State = syncState(s.Sync)
	p.Tables = []countTable{
		{"Sent", "Records", kindRows(s.Sync.Sent.Kinds())}, {"Received", "Records", kindRows(s.Sync.Received.Kinds())},
		{"Full copies sent", "Times", reasonRows(s.Sync.Resyncs)}, {"Failed connections", "Times", reasonRows(s.Sync.Failures)},
	}
	return p
}

// syncState says whether a failover would end connections, which is all that
// replication is for.
func syncState(s *flowsync.Status) (class, text string) {
	node := s.PeerNode
	if node == "" {
		node = "the other node"
	}
	switch {
	case !s.Connected:
		return "init", fmt.Sprintf("no connection to %s, %s: a failover ends connections", node, s.Peer)
	case s.Synced && s.PeerSynced:
		return "active", fmt.Sprintf("this node and %s have all of each other's connections", node)
	case s.PeerSynced:
		return "copying", fmt.Sprintf("this node does not have all connections of %s yet", node)
	}
	return "copying", fmt.Sprintf("%s does not have all connections of this node yet", node)
}

func syncFacts(snapshot *Snapshot) []fact {
	s := snapshot.Sync
	link := fact{"Link", "down for " + brief(snapshot.Now.Sub(s.Since)), s.LastError}
	if s.Connected {
		link.Value = "up for " + brief(snapshot.Now.Sub(s.Since))
	}
	heard := "never"
	if s.Heard >= 0 {
		heard = brief(s.Heard) + " ago"
	}
	copied := "none"
	switch {
	case s.Synced:
		copied = "up to date"
	case s.CopyAge >= 0:
		copied = "of " + brief(s.CopyAge) + " ago"
	}
	return []fact{
		link,
		{"Peer", strings.TrimSpace(s.PeerNode + " " + s.Peer), "from " + s.Listen},
		{"Heard", heard, "the last heartbeat"},
		{"Copy", copied, "this node's, of the other's connections"},
		{"Queue", grouped(s.Queue), "changes that wait to be sent"},
		{"Lag", brief(s.Lag), "age of the oldest change that is not acknowledged"},
		{"Bytes sent", size(s.Sent.Bytes).String(), size(s.Sent.Bytes).Exact()},
		{"Bytes received", size(s.Received.Bytes).String(), size(s.Received.Bytes).Exact()},
		{"Key", s.Key, "fingerprint; the same on both nodes"},
	}
}

func kindRows(kinds []flowsync.Kind) (rows []countRow) {
	for _, k := range kinds {
		rows = append(rows, countRow{k.Name, grouped(k.Count)})
	}
	return rows
}

func reasonRows(counts []flowsync.Count) (rows []countRow) {
	for _, c := range counts {
		rows = append(rows, countRow{c.Reason, grouped(c.Count)})
	}
	return rows
}

// shownDifferences is how many differences of the configurations the page shows.
const shownDifferences = 5

// syncTroubles is what an operator must see first of the replication.
func syncTroubles(s *flowsync.Status) []string {
	if s == nil {
		return nil
	}
	var t []string
	for i, d := range s.Differences {
		if i == shownDifferences {
			return append(t, fmt.Sprintf("There are %d more differences: see pgsteer sync show.", len(s.Differences)-i))
		}
		t = append(t, "The nodes are configured differently: "+d+".")
	}
	return t
}
