package stats

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// A routerRow is a virtual router in words.
type routerRow struct {
	Name, State, Since, SinceTitle string
	VRID, Priority, Interval       string
	Addresses                      string
	Owner                          string // whose the addresses are, a sentence's end
	Leases                         []leaseLine
	Peer, PeerPriority             string
	Sent, Received                 string
	Refused, RefusedTitle          string
	Transitions, GARP              string
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
			VRID: strconv.Itoa(int(r.VRID)), Priority: strconv.Itoa(int(r.Priority)), Interval: brief(r.AdvertInterval),
			Owner: owner(r),
			Peer:  "never", PeerPriority: "",
			Sent: grouped(r.Sent), Received: grouped(r.Received),
			Transitions: grouped(r.Transitions), GARP: grouped(r.GratuitousARP + r.UnsolicitedNA),
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
