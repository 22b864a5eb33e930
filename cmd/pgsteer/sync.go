package main

import (
	"context"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

func syncCommands() []command {
	return []command{showing(`the link to the other node, whether each has a full copy of the other's
connections, what was exchanged, and where the configurations differ`, showSync)}
}

func (s *session) sync() (status flowsync.Status, err error) {
	return status, s.ask(func(ctx context.Context, d daemon) (err error) {
		status, err = d.Sync(ctx)
		return err
	})
}

func showSync(s *session) error {
	status, err := s.sync()
	if err != nil {
		return err
	}
	if s.out.json {
		return s.out.value(status)
	}
	if err := writeLink(s.out, status); err != nil {
		return err
	}
	if err := s.out.remark("\n"); err != nil {
		return err
	}
	if err := writeSyncCounters(s.out, &status); err != nil {
		return err
	}
	if status.LastError != "" {
		if err := s.out.remark("\nThe last error: %s\n", status.LastError); err != nil {
			return err
		}
	}
	for i, d := range status.Differences {
		lead := ""
		if i == 0 {
			lead = "\n"
		}
		if err := s.out.remark("%sThe configurations differ: %s\n", lead, d); err != nil {
			return err
		}
	}
	return nil
}

func writeLink(out *output, status flowsync.Status) error {
	return writeList(out, []flowsync.Status{status}, func(r *row, s *flowsync.Status) {
		link := "down"
		if s.Connected {
			link = "connected"
		}
		node, heard, peerKey := s.PeerNode, "never", s.PeerKey
		if node == "" {
			node = "unknown"
		}
		if peerKey == "" {
			peerKey = "unknown"
		}
		if s.Heard >= 0 {
			heard = age(s.Heard)
		}
		r.cells(
			s.Node, s.Listen, node, s.Peer, link, age(time.Since(s.Since)), heard,
			copyText(s.Synced, s.CopyAge), yes(s.PeerSynced), count(s.Queue), age(s.Lag), s.Key, peerKey,
		)
	},
		left("NODE"), left("ADDRESS"), left("PEER"), left("PEER-ADDRESS"), left("LINK"), right("SINCE"), right("HEARD"),
		left("SYNCED"), left("PEER-SYNCED"), right("QUEUE"), right("LAG"), left("KEY"), left("PEER-KEY"),
	)
}

// copyText says whether this node has a copy of the other's connections, and how
// old one is that is not kept up to date.
func copyText(synced bool, old time.Duration) string {
	switch {
	case synced:
		return "yes"
	case old < 0:
		return "no"
	}
	return "no, copy of " + age(old) + " ago"
}

// A syncCounter is a line of the counters.
type syncCounter struct {
	of, kind string
	n        uint64
}

// writeSyncCounters has every kind of record, and the reasons that occurred.
func writeSyncCounters(out *output, s *flowsync.Status) error {
	var all []syncCounter
	for _, k := range s.Sent.Kinds() {
		all = append(all, syncCounter{"sent", k.Name, k.Count})
	}
	all = append(all, syncCounter{"sent", "bytes", s.Sent.Bytes})
	for _, k := range s.Received.Kinds() {
		all = append(all, syncCounter{"received", k.Name, k.Count})
	}
	all = append(all, syncCounter{"received", "bytes", s.Received.Bytes})
	for _, c := range s.Resyncs {
		if c.Count > 0 {
			all = append(all, syncCounter{"resync", c.Reason, c.Count})
		}
	}
	for _, c := range s.Failures {
		if c.Count > 0 {
			all = append(all, syncCounter{"failure", c.Reason, c.Count})
		}
	}
	return writeList(out, all, func(r *row, c *syncCounter) { r.cells(c.of, c.kind, total(c.n)) },
		left("COUNTER"), left("KIND"), right("COUNT"))
}
