package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

const (
	// rehearsalLook is how often the other node is looked at.
	rehearsalLook = 10 * time.Millisecond
	// rehearsalLooks is over how many looks the moment of its change is judged:
	// each of them finds it late by what the answer took, some of them by little.
	rehearsalLooks = 5
	// rehearsalTime is how long each step may take.
	rehearsalTime = 10 * time.Second
)

// A rehearsal is what came of giving the addresses away and taking them back.
type rehearsal struct {
	Router   string        `json:"router"`
	Resign   rehearsedMove `json:"resign"`
	Takeover rehearsedMove `json:"takeover"`
	Services []tally       `json:"services"`
	Agree    bool          `json:"agree"` // all counts are the same before and after
}

// A rehearsedMove is one of the two moves.
type rehearsedMove struct {
	From string `json:"from"` // nodes
	To   string `json:"to"`
	// Unheld is how long nobody held the lease, as far as this node knows,
	// nanoseconds.
	Unheld time.Duration `json:"unheld"`
	Took   time.Duration `json:"took"` // from the order until To was active, nanoseconds
}

// A tally is the connections of a service, as this node counts them.
type tally struct {
	Service string `json:"service"`
	Before  int64  `json:"before"`
	Away    int64  `json:"away"` // while the other node had the addresses
	After   int64  `json:"after"`
}

func rehearse(s *session, name string) error {
	r, err := s.router(name)
	if err != nil {
		return err
	}
	status, err := s.sync()
	if err != nil {
		return fmt.Errorf("there is nothing to rehearse: %w", err)
	}
	if why := unready(r, &status); why != "" {
		return errors.New("not rehearsed: " + why)
	}
	report := rehearsal{Router: r.Name, Services: []tally{}}
	if err := s.tally(&report, r, func(t *tally) *int64 { return &t.Before }); err != nil {
		return err
	}
	ordered := time.Now()
	moved, err := s.move(daemon.Resign, r.Name, rehearsalMove)
	if err != nil {
		return err
	}
	if err := s.rehearseBothWays(&report, moved, ordered); err != nil {
		return fmt.Errorf("%w; %s may have the addresses now: pgsteer vip takeover %s brings them back", err, status.PeerNode, r.Name)
	}
	report.Agree = !slices.ContainsFunc(report.Services, func(t tally) bool { return t.Before != t.After })
	return writeRehearsal(s.out, report)
}

// rehearsalMove is both orders.
var rehearsalMove = admin.Move{Reason: "rehearsal"}

// rehearseBothWays sees the resignation through that was just ordered, and the
// way back.
func (s *session) rehearseBothWays(report *rehearsal, r admin.RouterStatus, ordered time.Time) error {
	away, theirs, err := s.await(r, "active", ordered)
	if err != nil {
		return err
	}
	ours := lastMove(r)
	// Looks that were all later than the move was long would make it negative.
	report.Resign = rehearsedMove{away.Node, away.PeerNode, max(0, theirs.Sub(ours)), theirs.Sub(ordered)}
	if err := s.tally(report, r, func(t *tally) *int64 { return &t.Away }); err != nil {
		return err
	}
	ordered = time.Now()
	if r, err = s.move(daemon.Takeover, r.Name, rehearsalMove); err != nil {
		return err
	}
	back, theirs, err := s.await(r, "backup", ordered)
	if err != nil {
		return err
	}
	ours = lastMove(r)
	report.Takeover = rehearsedMove{back.PeerNode, back.Node, max(0, ours.Sub(theirs)), ours.Sub(ordered)}
	return s.tally(report, r, func(t *tally) *int64 { return &t.After })
}

// lastMove is when a virtual router changed its state last.
func lastMove(r admin.RouterStatus) time.Time {
	if len(r.History) == 0 {
		return r.Since
	}
	return r.History[len(r.History)-1].At
}

// unready returns why connections would end by a rehearsal, or it could not be
// made; "" if all is well.
func unready(r admin.RouterStatus, s *flowsync.Status) string {
	if r.State != vrrp.Active {
		return fmt.Sprintf("%s is %s on this node, and only the active node can rehearse", r.Name, r.State)
	}
	if !s.Connected || s.PeerState == nil {
		return "the other node is not connected"
	}
	there, ok := s.PeerState.Router(r.VRID, r.Source.Is6())
	switch {
	case !ok:
		return fmt.Sprintf("%s does not have the virtual router %s", s.PeerNode, r.Name)
	case there.State != "backup":
		return fmt.Sprintf("%s is %s on %s: %s", r.Name, there.State, s.PeerNode, there.Reason)
	case !s.PeerSynced:
		return s.PeerNode + " has no full copy of the connections"
	case !s.Synced:
		return "this node has no full copy of the connections of " + s.PeerNode
	}
	return ""
}

// await waits until the other node's virtual router has been in a state since
// after the order, and all is copied again. It returns when that state began, by
// this node's clock.
func (s *session) await(r admin.RouterStatus, there string, ordered time.Time) (status flowsync.Status, since time.Time, err error) {
	looks := 0
	for limit := ordered.Add(rehearsalTime); time.Now().Before(limit); {
		if status, err = s.sync(); err != nil {
			return status, since, err
		}
		if began, ok := beganThere(&status, r, there); ok {
			if looks == 0 || began.Before(since) {
				since = began
			}
			looks++
		}
		if looks >= rehearsalLooks && status.Synced && status.PeerSynced && !status.Copying {
			return status, since, nil
		}
		if err := s.wait(rehearsalLook); err != nil {
			return status, since, err
		}
	}
	if looks == 0 {
		return status, since, fmt.Errorf("%s did not become %s on %s within %s", r.Name, there, status.PeerNode, rehearsalTime)
	}
	return status, since, fmt.Errorf("the connections were not copied within %s", rehearsalTime)
}

// beganThere is since when the other node's virtual router has been in a state,
// if it says that it is.
func beganThere(s *flowsync.Status, r admin.RouterStatus, state string) (began time.Time, ok bool) {
	if !s.Connected || s.PeerState == nil {
		return began, false
	}
	there, ok := s.PeerState.Router(r.VRID, r.Source.Is6())
	return time.Now().Add(-s.Heard - there.Age), ok && there.State == state
}

// tally counts the connections of the services at the addresses of a virtual
// router.
func (s *session) tally(report *rehearsal, r admin.RouterStatus, field func(*tally) *int64) error {
	d, err := s.stats()
	if err != nil {
		return err
	}
	addresses := make(map[netip.Addr]bool)
	for _, p := range r.Addresses {
		addresses[p.Addr()] = true
	}
	for _, service := range d.Services {
		if !addresses[service.Addr.Addr()] {
			continue
		}
		i := slices.IndexFunc(report.Services, func(t tally) bool { return t.Service == service.Name })
		if i < 0 {
			i = len(report.Services)
			report.Services = append(report.Services, tally{Service: service.Name})
		}
		n := field(&report.Services[i])
		for _, b := range service.Backends {
			*n += b.Active
		}
	}
	return nil
}

func writeRehearsal(out *output, report rehearsal) error {
	if out.json {
		return out.value(report)
	}
	type named struct {
		name string
		rehearsedMove
	}
	moves := []named{{"resign", report.Resign}, {"takeover", report.Takeover}}
	err := writeList(out, moves, func(r *row, m *named) { r.cells(m.name, m.From, m.To, age(m.Took), age(m.Unheld)) },
		left("MOVE"), left("FROM"), left("TO"), right("TOOK"), right("HELD-BY-NOBODY"))
	if err != nil {
		return err
	}
	if err := out.remark("\n"); err != nil {
		return err
	}
	err = writeList(out, report.Services, func(r *row, t *tally) {
		r.cells(t.Service, count(t.Before), count(t.Away), count(t.After), yes(t.Before == t.After))
	}, left("SERVICE"), right("BEFORE"), right("AWAY"), right("AFTER"), left("AGREE"))
	if err != nil || report.Agree {
		return err
	}
	return out.remark("Connections that clients opened or closed meanwhile make the counts differ, too.\n")
}
