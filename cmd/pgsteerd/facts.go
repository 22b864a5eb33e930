package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
	"github.com/pgsteer/pgsteer/pkg/stats"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

const (
	// peerFresh is how old the other node's word may be to count.
	peerFresh = time.Second
	// afterMove is how long after a move nobody is suspected of not having given
	// way: the other node's word of before may still be on its way.
	afterMove = time.Second
	// lostAfter is how long the other node has to be away for it to be told: a
	// daemon that is replaced is back sooner.
	lostAfter = 3 * time.Second
	// syncGrace is how long after the start the two may take to find each other.
	syncGrace = 10 * time.Second
	// lingers is how long something counts that is seen at one moment only: a
	// contention, a client who found the table full.
	lingers = time.Minute
	// fullPercent and fitsPercent are when the flow table is told to be full, and
	// to be so no more.
	fullPercent, fitsPercent = 90, 80
)

// A watcher makes of snapshots what people are told of. It is pure, and keeps
// what a single snapshot does not have: since when, and whether it rose.
type watcher struct {
	since       map[string]memo
	contentions map[string]rise // by virtual router
	refused     rise            // for want of room in the flow table
	full        bool
	met         bool      // the other node was connected
	lost        time.Time // since when it is not; zero: it is
}

// A memo is a value and since when it is so.
type memo struct {
	value string
	since time.Time
}

// A rise is a counter and when it rose last.
type rise struct {
	count uint64
	at    time.Time
}

// lately reports whether the counter rose within the time that things linger.
func (r *rise) lately(count uint64, now time.Time) bool {
	if count > r.count {
		r.at = now
	}
	r.count = count
	return !r.at.IsZero() && now.Sub(r.at) < lingers
}

func newWatcher() *watcher {
	return &watcher{since: make(map[string]memo), contentions: make(map[string]rise)}
}

// look returns what there is to be told, and whether this node is the one to do so.
func (w *watcher) look(s *stats.Snapshot) (facts []notify.Fact, speaks bool) {
	facts = append(facts, w.backends(s)...)
	for i := range s.Routers {
		facts = append(facts, holder(s, &s.Routers[i]), w.split(s, &s.Routers[i]))
	}
	facts = append(facts, w.table(s), drift(s))
	if s.Sync != nil {
		facts = append(facts, w.sync(s))
	}
	for i := range facts {
		f := &facts[i]
		if f.Unknown {
			continue
		}
		if m := w.since[f.Key]; m.value != f.Value {
			w.since[f.Key] = memo{f.Value, s.Now}
		}
		if f.Since.IsZero() {
			f.Since = w.since[f.Key].since
		}
	}
	return facts, speaker(s)
}

// speaker reports whether this node is the one that tells people: the one that
// holds the first virtual router that anybody holds.
func speaker(s *stats.Snapshot) bool {
	for i := range s.Routers {
		r := &s.Routers[i]
		peer, fresh := peerOf(s, r)
		switch {
		case r.State == vrrp.Active:
			return true
		case fresh && peer.Leased:
			return false
		case r.State == vrrp.Backup:
			return false // somebody holds it, or will in a moment
		}
	}
	return false
}

// peerOf returns what the other node says of a virtual router.
func peerOf(s *stats.Snapshot, r *vrrp.Snapshot) (peer flowsync.RouterState, fresh bool) {
	if s.Sync == nil || s.Sync.PeerState == nil || s.Sync.Heard < 0 || s.Sync.Heard > peerFresh || !s.Sync.Connected {
		return peer, false
	}
	return s.Sync.PeerState.Router(r.VRID, r.Source.Is6())
}

// holder is who serves the addresses of a virtual router.
func holder(s *stats.Snapshot, r *vrrp.Snapshot) notify.Fact {
	f := notify.Fact{Key: "vip/" + r.Name, Kind: "vip", Severity: notify.Notice}
	peer, fresh := peerOf(s, r)
	switch {
	case r.State == vrrp.Active:
		f.Value, f.Reason, f.Since = s.Node, r.Reason, r.Since
	case fresh && peer.Leased:
		f.Value, f.Reason, f.Since = s.Sync.PeerState.Node, peer.Reason, s.Now.Add(-s.Sync.Heard-peer.Age)
	case fresh && r.State == vrrp.Init && peer.State == vrrp.Init.String():
		f.Value, f.Bad, f.Severity, f.Reason = "nobody", true, notify.Critical, r.Fault
		f.Title = fmt.Sprintf("Nobody serves %s (virtual router %s)", addressText(r.Addresses), r.Name)
		return f
	case s.Sync == nil && r.State == vrrp.Backup && r.Peer.Address.IsValid() && r.Peer.Priority > 0:
		f.Value = r.Peer.Address.String()
	default:
		f.Unknown = true
	}
	f.Title = fmt.Sprintf("%s serves %s (virtual router %s)", f.Value, addressText(r.Addresses), r.Name)
	return f
}

// addressText is addresses without their lengths.
func addressText(all []netip.Prefix) string {
	var words []string
	for _, p := range all {
		words = append(words, p.Addr().String())
	}
	return strings.Join(words, ", ")
}

// split is whether two nodes serve the addresses of a virtual router at once.
func (w *watcher) split(s *stats.Snapshot, r *vrrp.Snapshot) notify.Fact {
	f := notify.Fact{
		Key: "split/" + r.Name, Kind: "split_brain", Value: "ok", Severity: notify.Good,
		Title: fmt.Sprintf("One node alone serves %s (virtual router %s) again", addressText(r.Addresses), r.Name),
	}
	seen := w.contentions[r.Name]
	contended := seen.lately(r.Contentions, s.Now)
	w.contentions[r.Name] = seen
	peer, fresh := peerOf(s, r)
	both := fresh && peer.Leased && r.State == vrrp.Active && r.Lease > 0 && s.Now.Sub(r.Since) > afterMove
	if !both && !contended {
		return f
	}
	f.Value, f.Bad, f.Severity = "two", true, notify.Critical
	f.Title = fmt.Sprintf("Two nodes serve %s (virtual router %s) at once", addressText(r.Addresses), r.Name)
	if f.Reason = "another node was seen to be active beside this one, " + r.Peer.Address.String(); both {
		f.Reason = s.Sync.PeerState.Node + " says that it is active, too"
	}
	return f
}

// backends are the poolers by their checks, and the services by what is left.
func (w *watcher) backends(s *stats.Snapshot) (facts []notify.Fact) {
	known := make(map[[2]string]bool)
	for _, c := range s.Checks {
		known[[2]string{c.Service, c.Backend}] = c.Known
	}
	var services []string
	up, unknown, others := map[string]bool{}, map[string]bool{}, map[string][]string{}
	for _, b := range s.Backends {
		if len(services) == 0 || services[len(services)-1] != b.Service {
			services = append(services, b.Service)
		}
		checked := known[[2]string{b.Service, b.Name}]
		up[b.Service] = up[b.Service] || b.State == lb.Up
		unknown[b.Service] = unknown[b.Service] || !checked
		others[b.Service] = append(others[b.Service], b.Name+" is "+b.State.String())
		facts = append(facts, poolerFact(&b, checked))
	}
	for _, name := range services {
		f := notify.Fact{
			Key: "service/" + name, Kind: "service", Value: "ok", Severity: notify.Good,
			Title: fmt.Sprintf("Service %s takes connections again", name),
		}
		if !up[name] {
			f.Value, f.Bad, f.Severity, f.Unknown = "none", true, notify.Critical, unknown[name]
			f.Title = fmt.Sprintf("No pooler of service %s takes connections", name)
			f.Reason = strings.Join(others[name], ", ")
		}
		facts = append(facts, f)
	}
	return facts
}

// poolerFact is a backend by its checks. One that an operator took out is nobody's
// concern as long as he does.
func poolerFact(b *lb.BackendStatus, checked bool) notify.Fact {
	f := notify.Fact{
		Key: "backend/" + b.Service + "/" + b.Name, Kind: "backend", Value: "up", Severity: notify.Good,
		Title:   fmt.Sprintf("Pooler %s of service %s (%v) is up again", b.Name, b.Service, b.Addr),
		Unknown: !checked || b.Admin == lb.AdminMaint,
	}
	if b.State == lb.Up || b.State == lb.Down {
		f.Since = b.Since
	}
	if !b.Healthy {
		f.Value, f.Bad, f.Severity = "down", true, notify.Warning
		f.Title = fmt.Sprintf("Pooler %s of service %s (%v) is down", b.Name, b.Service, b.Addr)
		f.Reason = b.HealthReason
	}
	return f
}

// table is whether the flow table has room.
func (w *watcher) table(s *stats.Snapshot) notify.Fact {
	f := notify.Fact{Key: "table", Kind: "table_full", Value: "ok", Severity: notify.Good, Title: "The flow table has room again"}
	a := s.Datapath.Audit
	if s.DatapathErr != nil || a.Capacity == 0 {
		f.Unknown = true
		return f
	}
	var refusals uint64
	for _, v := range s.Datapath.Verdicts {
		if v.Name == "tx_rst_table_full" {
			refusals = v.Count
		}
	}
	refused := w.refused.lately(refusals, s.Now)
	percent := 100 * 2 * a.Flows / a.Capacity // a flow has two entries
	w.full = refused || percent >= fullPercent || w.full && percent >= fitsPercent
	if w.full {
		f.Value, f.Bad, f.Severity, f.Title = "full", true, notify.Critical, "The flow table is full, or nearly so"
		f.Reason = fmt.Sprintf("%d of %d connections", a.Flows, a.Capacity/2)
		if refused {
			f.Reason += "; clients were refused"
		}
	}
	return f
}

// drift is whether the counts agree with the flow table.
func drift(s *stats.Snapshot) notify.Fact {
	f := notify.Fact{Key: "drift", Kind: "drift", Value: "ok", Severity: notify.Good, Title: "The counts of connections agree with the flow table again"}
	f.Unknown = s.DatapathErr != nil
	if d := s.Datapath.Audit.Drift; d != 0 {
		f.Value, f.Bad, f.Severity = "drift", true, notify.Warning
		f.Title, f.Reason = "The counts of connections disagree with the flow table", fmt.Sprintf("by %d", d)
	}
	return f
}

// sync is whether the other node has what this one does.
func (w *watcher) sync(s *stats.Snapshot) notify.Fact {
	f := notify.Fact{
		Key: "sync", Kind: "sync", Value: "ok", Severity: notify.Good,
		Title: "The other node is told of the connections again", Reason: s.Sync.PeerNode + " (" + s.Sync.Peer + ")",
	}
	if s.Sync.Connected {
		w.met, w.lost = true, time.Time{}
		return f
	}
	if w.lost.IsZero() {
		w.lost = s.Now
	}
	grace := lostAfter
	if !w.met {
		grace = syncGrace
	}
	if s.Now.Sub(w.lost) < grace {
		f.Unknown = true
		return f
	}
	f.Value, f.Bad, f.Severity, f.Since = "lost", true, notify.Warning, w.lost
	f.Title = "The other node, " + s.Sync.Peer + ", is not told of the connections: a failover would end them"
	if f.Reason = s.Sync.LastError; f.Reason == "" {
		f.Reason = "it is not there"
	}
	return f
}
