package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

func vipCommands() []command {
	return []command{
		showing(`one line for each address; while pgsteerd answers also who else was heard in
the election, whether this node has a copy of his connections, and why it
stands back (GATE) or stays out of the election (FAULT)`, showVIPs),
		{
			name: "resign", args: "[ROUTER] [force]",
			about: `gives the addresses of a virtual router to the other node, with all that it
must know of the connections. It stands back from then on, as long as another
node is there. force does it even if connections end by it.`,
			prepare: moving(daemon.Resign),
		},
		{
			name: "takeover", args: "[ROUTER] [force]",
			about: `takes the addresses from the other node, and keeps them from a better one
until this node leaves the role. force does it even if connections end by it.`,
			prepare: moving(daemon.Takeover),
		},
		{
			name: "history", args: "[ROUTER]",
			about: `the last 64 moves, the oldest first: why, the node's priority then, who had been
heard last, its priority, and how long before that was. With replication the
other node's moves are among them, as it told of them while it could be heard`,
			prepare: withRouter(history),
		},
		{
			name: "rehearse", args: "[ROUTER]",
			about: `on the active node: gives the addresses away and takes them back, and says how
long nobody held the lease, and whether all connections are still there. It
refuses where connections would end by it.`,
			prepare: withRouter(rehearse),
		},
	}
}

// withRouter prepares a command that may name a virtual router.
func withRouter(run func(s *session, router string) error) func([]string) (action, error) {
	return func(args []string) (action, error) {
		switch len(args) {
		case 0:
			return func(s *session) error { return run(s, "") }, nil
		case 1:
			return func(s *session) error { return run(s, args[0]) }, nil
		}
		return nil, usagef("nothing may follow the virtual router, but %q was given", args[1])
	}
}

// A mover is one of the daemon's orders to move addresses.
type mover func(daemon, context.Context, string, admin.Move) (admin.RouterStatus, error)

// moving prepares an order. force is the last word, so that a virtual router may
// have any name.
func moving(order mover) func([]string) (action, error) {
	return func(args []string) (action, error) {
		force := len(args) > 0 && args[len(args)-1] == "force"
		if force {
			args = args[:len(args)-1]
		}
		return withRouter(func(s *session, name string) error {
			r, err := s.router(name)
			if err != nil {
				return err
			}
			if r, err = s.move(order, r.Name, admin.Move{Force: force}); err != nil {
				return err
			}
			return showRouter(s.out, r)
		})(args)
	}
}

// moveTimeout is how long the daemon may take to answer an order: what it gives
// it, and a moment to say so.
const moveTimeout = admin.MoveTimeout + 2*time.Second

func (s *session) move(order mover, router string, m admin.Move) (r admin.RouterStatus, err error) {
	return r, s.askWithin(moveTimeout, func(ctx context.Context, d daemon) (err error) {
		r, err = order(d, ctx, router, m)
		return err
	})
}

func (s *session) routers() (all []admin.RouterStatus, err error) {
	return all, s.ask(func(ctx context.Context, d daemon) (err error) {
		all, err = d.Routers(ctx)
		return err
	})
}

// router asks the daemon for a virtual router; without a name, for the only one.
func (s *session) router(name string) (admin.RouterStatus, error) {
	all, err := s.routers()
	if err != nil {
		return admin.RouterStatus{}, err
	}
	var names []string
	for _, r := range all {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	switch {
	case name != "":
		return admin.RouterStatus{}, unknown("virtual router", name, names)
	case len(all) == 0:
		return admin.RouterStatus{}, errors.New("there is no virtual router")
	case len(all) > 1:
		return admin.RouterStatus{}, fmt.Errorf("which virtual router? There is %s", strings.Join(names, ", "))
	}
	return all[0], nil
}

// showRouter shows what has become of a virtual router.
func showRouter(out *output, r admin.RouterStatus) error {
	if out.json {
		return out.value(r)
	}
	return writeList(out, []admin.RouterStatus{r}, func(row *row, r *admin.RouterStatus) {
		row.cells(r.Name, r.State.String(), overridden(count(r.EffectivePriority), count(r.Priority)), peerText(r.Peer), yes(r.Synced), r.Reason)
	}, left("ROUTER"), left("STATE"), right("PRIORITY"), left("PEER"), left("SYNCED"), left("REASON"))
}

// peerText is who was last heard, and how.
func peerText(p vrrp.Peer) string {
	switch {
	case !p.Address.IsValid():
		return "none"
	case p.Priority == 0:
		return fmt.Sprintf("%s resigned %s ago", p.Address, age(p.Ago))
	}
	return fmt.Sprintf("%s priority %d %s ago", p.Address, p.Priority, age(p.Ago))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// A vipStatus is an address as the datapath has it, with what the daemon knows.
type vipStatus struct {
	lb.VIPStats
	*election
}

// An election is what the daemon adds to an address.
type election struct {
	Peer   vrrp.Peer `json:"peer"`
	Synced bool      `json:"synced"`
	Gate   string    `json:"gate"`
	Fault  string    `json:"fault"`
}

// lookTimeout is how long a daemon may take to add what it knows to what is
// there without it.
const lookTimeout = time.Second

func showVIPs(s *session) error {
	d, err := s.stats()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, lookTimeout)
	defer cancel()
	routers, asked := s.dial(s.socket).Routers(ctx)
	vips := make([]vipStatus, 0, len(d.VIPs))
	gated, failed := false, false
	for _, v := range d.VIPs {
		status := vipStatus{VIPStats: v}
		if i := slices.IndexFunc(routers, func(r admin.RouterStatus) bool { return serves(r, v.Addr) }); i >= 0 {
			r := routers[i]
			status.Priority = r.EffectivePriority // in the tables is that of its last move
			status.election = &election{r.Peer, r.Synced, r.Gate, r.Fault}
			gated, failed = gated || r.Gate != "", failed || r.Fault != ""
		}
		vips = append(vips, status)
	}
	columns := []column{left("ADDRESS"), left("ROUTER"), right("VRID"), right("PRIORITY"), left("STATE"), right("SINCE"), right("LEASE")}
	if asked == nil {
		columns = append(columns, left("PEER"), left("SYNCED"))
	}
	if gated {
		columns = append(columns, left("GATE"))
	}
	if failed {
		columns = append(columns, left("FAULT"))
	}
	err = writeList(s.out, vips, func(r *row, v *vipStatus) {
		lease := "silent"
		if v.Lease > 0 {
			lease = age(v.Lease)
		}
		r.cells(v.Addr.String(), v.Router, count(v.VRID), count(v.Priority), v.State, age(v.Since), lease)
		if asked != nil {
			return
		}
		e := v.election
		if e == nil { // in the tables, but not in the daemon's configuration
			e = &election{}
		}
		r.cells(peerText(e.Peer), yes(e.Synced))
		if gated {
			r.cells(e.Gate)
		}
		if failed {
			r.cells(e.Fault)
		}
	}, columns...)
	if err != nil || asked == nil || errors.Is(asked, admin.ErrNotRunning) {
		return err
	}
	return s.out.remark("Without what pgsteerd knows: %v\n", s.explainDaemon(asked, lookTimeout))
}

func serves(r admin.RouterStatus, a netip.Addr) bool {
	return slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// A routerChange is a move with the name of its virtual router, and of the node
// that made it: "" for the one that was asked.
type routerChange struct {
	Router string `json:"router"`
	Node   string `json:"node"`
	vrrp.Change
}

// momentFormat is a moment to the millisecond: moves take some.
const momentFormat = "2006-01-02T15:04:05.000Z07:00"

func history(s *session, name string) error {
	all, err := s.routers()
	if err != nil {
		return err
	}
	if name != "" {
		r, err := s.router(name)
		if err != nil {
			return err
		}
		all = []admin.RouterStatus{r}
	}
	var changes []routerChange
	for _, r := range all {
		for _, c := range r.History {
			changes = append(changes, routerChange{r.Name, "", c})
		}
		for _, c := range r.PeerHistory {
			changes = append(changes, routerChange{r.Name, c.Node, c.Change})
		}
	}
	slices.SortStableFunc(changes, func(a, b routerChange) int { return a.At.Compare(b.At) })
	return writeList(s.out, changes, func(r *row, c *routerChange) {
		r.cells(c.At.Format(momentFormat), c.Router, cmp.Or(c.Node, "this"), c.From.String(), c.To.String(), count(c.Priority))
		if p := c.Peer; p.Address.IsValid() {
			r.cells(p.Address.String(), count(p.Priority), age(p.Ago))
		} else {
			r.cells("none", "", "")
		}
		r.cells(c.Reason)
	},
		left("TIME"), left("ROUTER"), left("NODE"), left("FROM"), left("TO"), right("PRIORITY"),
		left("PEER"), right("PEER-PRIORITY"), right("HEARD"), left("REASON"),
	)
}
