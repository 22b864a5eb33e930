package stats

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// A routerRow is a virtual router in words.
type routerRow struct {
	Name, State, Since, SinceTitle string
	VRID, Priority, PriorityTitle  string
	Interval                       string
	Addresses                      string
	Owner                          string // whose the addresses are, a sentence's end
	Leases                         []leaseLine
	Peer, PeerPriority             string
	Sent, Received                 string
	Refused, RefusedTitle          string
	Transitions, Contentions, GARP string
}

// A leaseLine is one address and the time for which this node answers for it.
type leaseLine struct{ Address, Left string }

func routerRows(s *Snapshot) []routerRow {
	leases := map[netip.Addr]time.Duration{}
	for _, v := range s.Datapath.VIPs {
		leases[v.Addr] = v.Lease
	}
	var rows []routerRow
	for _, r := range s.Routers {
		row := routerRow{
			Name: r.Name, State: r.State.String(),
			Since: brief(s.Now.Sub(r.Since)), SinceTitle: "since " + r.Since.Format(time.RFC3339) + ": " + r.Reason,
			VRID: strconv.Itoa(int(r.VRID)), Priority: strconv.Itoa(int(r.EffectivePriority)), Interval: brief(r.AdvertInterval),
			Owner: owner(r),
			Peer:  "never", PeerPriority: "",
			Sent: grouped(r.Sent), Received: grouped(r.Received),
			Transitions: grouped(r.Transitions), Contentions: grouped(r.Contentions), GARP: grouped(r.GratuitousARP + r.UnsolicitedNA),
		}
		var addrs []string
		for _, p := range r.Addresses {
			addrs = append(addrs, p.Addr().String())
			left := "silent"
			if d, ok := leases[p.Addr()]; s.DatapathErr != nil || !ok {
				left = "unknown"
			} else if d > 0 {
				left = brief(d)
			}
			row.Leases = append(row.Leases, leaseLine{p.Addr().String(), left})
		}
		row.Addresses = strings.Join(addrs, ", ")
		if r.Peer.Address.IsValid() {
			row.Peer = fmt.Sprintf("%s, %s ago", r.Peer.Address, brief(r.Peer.Ago))
			row.PeerPriority = strconv.Itoa(int(r.Peer.Priority))
		}
		switch {
		case r.Gate != "":
			row.PriorityTitle = fmt.Sprintf("configured %d; it stands back: %s", r.Priority, r.Gate)
		case r.EffectivePriority != r.Priority:
			row.PriorityTitle = fmt.Sprintf("configured %d", r.Priority)
		}
		row.Refused, row.RefusedTitle = refusals(r.Refused)
		rows = append(rows, row)
	}
	return rows
}

// owner says who has the addresses, as far as this node can tell.
func owner(r vrrp.Snapshot) string {
	// A backup takes over after three intervals and a skew of less than one
	// (RFC 9568, 6.1), so an advert that is older than four is no evidence.
	const intervals = 4
	switch {
	case r.State == vrrp.Active:
		return "is owned by this node"
	case r.State == vrrp.Init:
		return "is not served by this node: the virtual router is not running"
	case !r.Peer.Address.IsValid() || r.Peer.Ago > intervals*max(r.AdvertInterval, r.Peer.AdvertInterval):
		return "is not owned by this node; no other node is heard"
	case r.Peer.Priority == 0:
		return "is being given up by " + r.Peer.Address.String()
	}
	return "is owned by " + r.Peer.Address.String() + "; this node is the backup"
}

func refusals(counts []vrrp.RefusalCount) (sum, title string) {
	var n uint64
	var parts []string
	for _, c := range counts {
		n += c.Count
		if c.Count > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", c.Reason, c.Count))
		}
	}
	return grouped(n), strings.Join(parts, ", ")
}

// shownMoves is how many moves the page shows.
const shownMoves = 10

// A moveRow is a change of state of a virtual router in words.
type moveRow struct {
	At, Ago            string
	Router, From, To   string
	Priority           string
	Peer, PeerPriority string
	Heard, Reason      string
}

// moveRows is the last moves of all virtual routers, the newest first.
func moveRows(s *Snapshot) []moveRow {
	type move struct {
		router string
		vrrp.Change
	}
	var moves []move
	for _, r := range s.Routers {
		for _, c := range r.History {
			moves = append(moves, move{r.Name, c})
		}
	}
	slices.SortStableFunc(moves, func(a, b move) int { return b.At.Compare(a.At) })
	var rows []moveRow
	for _, m := range moves[:min(len(moves), shownMoves)] {
		row := moveRow{
			At: m.At.Format("2006-01-02T15:04:05.000Z07:00"), Ago: brief(s.Now.Sub(m.At)) + " ago",
			Router: m.router, From: m.From.String(), To: m.To.String(), Priority: strconv.Itoa(int(m.Priority)),
			Peer: "nobody", Reason: m.Reason,
		}
		if m.Peer.Address.IsValid() {
			row.Peer, row.PeerPriority, row.Heard = m.Peer.Address.String(), strconv.Itoa(int(m.Peer.Priority)), brief(m.Peer.Ago)+" before"
		}
		rows = append(rows, row)
	}
	return rows
}

// routerTroubles is that of the virtual routers.
func routerTroubles(routers []vrrp.Snapshot) []string {
	var t []string
	for _, r := range routers {
		if r.Fault != "" {
			t = append(t, fmt.Sprintf("Virtual router %s stays out of the election: %s.", r.Name, r.Fault))
		}
		if r.CutOff {
			t = append(t, fmt.Sprintf("Virtual router %s must not become active: this node seems to be cut off.", r.Name))
		}
	}
	return t
}
