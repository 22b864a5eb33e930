package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/pgsteer/pgsteer/pkg/notify"
)

// Notifier tells people what happens.
type Notifier interface {
	Status() []notify.Status
	// Test tells every sink that this is a test; by is who asks.
	Test(ctx context.Context, by string) []notify.Result
}

// NotifyTestTimeout is how long a test may take: a sink has a minute at the most.
const NotifyTestTimeout = 65 * time.Second

var errNobodyIsTold = errors.New("nobody is notified: the configuration has no notify.slack, notify.webhook or notify.exec")

func (s *Server) notifyStatus(w http.ResponseWriter, _ *http.Request) {
	n := s.notifier()
	if n == nil {
		s.fail(w, http.StatusNotFound, errNobodyIsTold)
		return
	}
	s.answer(w, http.StatusOK, n.Status())
}

func (s *Server) notifyTest(w http.ResponseWriter, r *http.Request) {
	by, err := peerOf(r.Context())
	if err != nil {
		s.fail(w, http.StatusInternalServerError, err)
		return
	}
	n := s.notifier()
	if n == nil {
		s.fail(w, http.StatusNotFound, errNobodyIsTold)
		return
	}
	// The sinks may take longer than a request usually does, and its end by a
	// deadline would end the test.
	c, until := http.NewResponseController(w), time.Now().Add(NotifyTestTimeout+requestTime)
	if err := errors.Join(c.SetReadDeadline(until), c.SetWriteDeadline(until)); err != nil {
		s.fail(w, http.StatusInternalServerError, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), NotifyTestTimeout)
	defer cancel()
	s.log.Info("the notifications are tested", "by", by.String())
	s.answer(w, http.StatusOK, n.Test(ctx, by.String()))
}

// Notifications returns how it stands with each sink. It is an *Error with status
// 404 when there is none.
func (c *Client) Notifications(ctx context.Context) ([]notify.Status, error) {
	var all []notify.Status
	return all, c.do(ctx, http.MethodGet, "/v1/notify", nil, &all)
}

// TestNotifications tells every sink that this is a test, and returns what became
// of it.
func (c *Client) TestNotifications(ctx context.Context) ([]notify.Result, error) {
	var all []notify.Result
	return all, c.do(ctx, http.MethodPost, "/v1/notify/test", nil, &all)
}
