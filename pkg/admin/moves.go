package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

const (
	// MoveTimeout is how long a move may take, after which it is withdrawn. One to a node that is there takes
	// milliseconds, one that has to outlast somebody's lease a second at most.
	MoveTimeout = 10 * time.Second
	// drainTime is how long a resignation waits for the other node to know all
	// connections: it is on the same LAN, or it is not there.
	drainTime = 500 * time.Millisecond
	// maxReason bounds the operator's reason, in bytes: it is one line of a log.
	maxReason = 200
)

// Router is what is needed of a virtual router.
type Router interface {
	Snapshot() vrrp.Snapshot
	Resign(ctx context.Context, reason string) error
	Takeover(ctx context.Context, reason string) error
}

var _ Router = (*vrrp.Router)(nil)

// Replication is what is needed of the link to the other node.
type Replication interface {
	Status() flowsync.Status
	Drain(ctx context.Context) error
}

var _ Replication = (*flowsync.Link)(nil)

// Move is an order to give up the addresses of a virtual router, or to take
// them.
type Move struct {
	Reason string `json:"reason,omitempty"` // one line
	// Force has it done even if connections end by it.
	Force bool `json:"force,omitempty"`
}

func (s *Server) listRouters(w http.ResponseWriter, _ *http.Request) {
	all := []RouterStatus{}
	for _, r := range s.routers() {
		v := r.Snapshot()
		all = append(all, RouterStatus{v, s.peerHistory(v.VRID, v.Source.Is6())})
	}
	s.answer(w, http.StatusOK, all)
}

func (s *Server) syncStatus(w http.ResponseWriter, _ *http.Request) {
	if r := s.replication(); r != nil {
		s.answer(w, http.StatusOK, r.Status())
		return
	}
	s.fail(w, http.StatusNotFound, errors.New("connections are not replicated: sync is not configured"))
}

func (s *Server) resign(w http.ResponseWriter, r *http.Request) {
	s.move(w, r, "resign", func(ctx context.Context, router Router, reason string, force bool) error {
		if err := s.prepareResign(ctx, router.Snapshot(), force); err != nil {
			return err
		}
		return router.Resign(ctx, reason)
	})
}

func (s *Server) takeover(w http.ResponseWriter, r *http.Request) {
	s.move(w, r, "take over", func(ctx context.Context, router Router, reason string, force bool) error {
		if err := s.mayTakeOver(router.Snapshot(), force); err != nil {
			return err
		}
		return router.Takeover(ctx, reason)
	})
}

// move answers an order. It is withdrawn if the client does not wait for it.
func (s *Server) move(w http.ResponseWriter, r *http.Request, what string, order func(ctx context.Context, router Router, reason string, force bool) error) {
	var m Move
	if err := decode(w, r, &m); err != nil && !errors.Is(err, errNoBody) {
		s.fail(w, http.StatusBadRequest, err)
		return
	}
	if err := m.check(); err != nil {
		s.fail(w, http.StatusBadRequest, err)
		return
	}
	by, err := peerOf(r.Context())
	if err != nil {
		s.fail(w, http.StatusInternalServerError, err)
		return
	}
	router, err := s.router(r.PathValue("name"))
	if err != nil {
		s.fail(w, http.StatusNotFound, err)
		return
	}
	if err := extend(w); err != nil {
		s.fail(w, http.StatusInternalServerError, err)
		return
	}
	log := s.log.With("router", r.PathValue("name"), "order", what, "by", by.String(), "reason", m.Reason, "force", m.Force)
	log.Info("the operator moves a virtual router")
	ctx, cancel := context.WithTimeout(r.Context(), MoveTimeout)
	defer cancel()
	err = order(ctx, router, m.reason(what, by), m.Force)
	if err != nil {
		log.Warn("a virtual router was not moved", "error", err)
	}
	switch {
	case err == nil:
		s.answer(w, http.StatusOK, router.Snapshot())
	case errors.Is(err, context.DeadlineExceeded):
		s.fail(w, http.StatusGatewayTimeout, fmt.Errorf("it did not come about within %s: %w", MoveTimeout, err))
	default:
		s.fail(w, http.StatusConflict, err)
	}
}

// extend lets an answer take as long as a move. The deadline for reading counts
// too: when it passes, the client is taken to have gone.
func extend(w http.ResponseWriter) error {
	c, limit := http.NewResponseController(w), time.Now().Add(MoveTimeout+requestTime)
	if err := errors.Join(c.SetReadDeadline(limit), c.SetWriteDeadline(limit)); err != nil {
		return fmt.Errorf("giving an order its time: %w", err)
	}
	return nil
}

func (m *Move) check() error {
	if len(m.Reason) > maxReason {
		return fmt.Errorf("the reason is longer than %d bytes", maxReason)
	}
	for _, c := range m.Reason {
		if !unicode.IsPrint(c) {
			return errors.New("the reason is not one line of text")
		}
	}
	return nil
}

// reason is what the history and the other node are told.
func (m *Move) reason(what string, by peer) string {
	if m.Reason == "" {
		return "told to " + what + " by " + by.String()
	}
	return m.Reason + " (told to " + what + " by " + by.String() + ")"
}

func (s *Server) router(name string) (Router, error) {
	for _, r := range s.routers() {
		if r.Snapshot().Name == name {
			return r, nil
		}
	}
	return nil, fmt.Errorf("unknown virtual router: %s", name)
}

// prepareResign lets the other node have all connections, also by a copy that is
// under way, before the addresses of a virtual router go there. It returns why
// connections would end all the same, or nobody would serve the addresses.
func (s *Server) prepareResign(ctx context.Context, v vrrp.Snapshot, force bool) error {
	link := s.replication()
	if link == nil || v.State != vrrp.Active {
		return nil
	}
	status := link.Status()
	if why := standIn(&status, v); why != "" && !force {
		return fmt.Errorf("not now: %s; force resigns all the same", why)
	}
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if err := link.Drain(ctx); err != nil {
		s.log.Warn("the other node may not know of all connections", "error", err)
	}
	if status = link.Status(); !status.PeerSynced && !force {
		return fmt.Errorf("not now: %s has no full copy of the connections; force resigns all the same", status.PeerNode)
	}
	return nil
}

// mayTakeOver returns why connections would end if this node took the addresses
// from the other one now.
func (s *Server) mayTakeOver(v vrrp.Snapshot, force bool) error {
	link := s.replication()
	if force || link == nil || v.State == vrrp.Active || link.Status().Synced {
		return nil
	}
	return errors.New("not now: this node has no full copy of the connections; force takes over all the same")
}

// standIn returns why the other node could not take over at once, ""
// if it can.
func standIn(s *flowsync.Status, v vrrp.Snapshot) string {
	if !s.Connected || s.PeerState == nil {
		return "the other node is not connected"
	}
	r, ok := s.PeerState.Router(v.VRID, v.Source.Is6())
	switch {
	case !ok:
		return fmt.Sprintf("%s does not have the virtual router %s", s.PeerNode, v.Name)
	case r.State != vrrp.Backup.String():
		return fmt.Sprintf("%s is no backup of %s, but %s: %s", s.PeerNode, v.Name, r.State, r.Reason)
	}
	return ""
}
