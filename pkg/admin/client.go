package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// ErrNotRunning means that nobody listens on the socket.
var ErrNotRunning = errors.New("the daemon is not running")

// maxAnswer bounds what is read of an answer, in bytes: 256 services of 64
// backends take some 10 MB.
const maxAnswer = 64 << 20

// Error is a refusal by the daemon.
type Error struct {
	Status  int    // of HTTP: 400, 404, 409, 500 or 504, as the package says
	Message string // a sentence
}

// Error returns the sentence.
func (e *Error) Error() string { return e.Message }

// Client speaks to the daemon. It is safe for concurrent use.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client for the daemon that listens on socket. It
// connects for each call. Errors of its methods match ErrNotRunning when nobody
// listens, fs.ErrPermission when the socket is not for this user, and are an
// *Error when the daemon refuses.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Backends returns the status of every backend, in the order of configuration.
func (c *Client) Backends(ctx context.Context) ([]lb.BackendStatus, error) {
	var all []lb.BackendStatus
	return all, c.do(ctx, http.MethodGet, "/v1/backends", nil, &all)
}

// ChangeBackend changes one backend and returns what has become of it.
func (c *Client) ChangeBackend(ctx context.Context, service, backend string, change BackendChange) (lb.BackendStatus, error) {
	var status lb.BackendStatus
	path := "/v1/services/" + url.PathEscape(service) + "/backends/" + url.PathEscape(backend)
	return status, c.do(ctx, http.MethodPatch, path, change, &status)
}

// RouterStatus is what a node knows of a virtual router.
type RouterStatus struct {
	vrrp.Snapshot
	// PeerHistory are the moves of the other node that it has told of, the oldest
	// first, by this node's clock. It is empty without replication.
	PeerHistory []PeerChange `json:"peer_history,omitempty"`
}

// PeerChange is a change of state of the other node.
type PeerChange struct {
	Node string `json:"node"`
	vrrp.Change
}

// Routers returns the virtual routers, in the order of configuration.
func (c *Client) Routers(ctx context.Context) ([]RouterStatus, error) {
	var all []RouterStatus
	return all, c.do(ctx, http.MethodGet, "/v1/routers", nil, &all)
}

// Resign gives the addresses of a virtual router up, and returns what has become
// of it. The daemon takes MoveTimeout at most.
func (c *Client) Resign(ctx context.Context, router string, m Move) (RouterStatus, error) {
	return c.move(ctx, router, "resign", m)
}

// Takeover is the opposite of Resign.
func (c *Client) Takeover(ctx context.Context, router string, m Move) (RouterStatus, error) {
	return c.move(ctx, router, "takeover", m)
}

func (c *Client) move(ctx context.Context, router, order string, m Move) (RouterStatus, error) {
	var status RouterStatus
	return status, c.do(ctx, http.MethodPost, "/v1/routers/"+url.PathEscape(router)+"/"+order, m, &status)
}

// Sync returns the state of the replication. It is an *Error with status 404
// when there is none.
func (c *Client) Sync(ctx context.Context) (flowsync.Status, error) {
	var status flowsync.Status
	return status, c.do(ctx, http.MethodGet, "/v1/sync", nil, &status)
}

// do sends request as JSON, unless it is nil, and reads the answer into v.
func (c *Client) do(ctx context.Context, method, path string, request, v any) error {
	var body io.Reader
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return fmt.Errorf("writing the request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	// The host is for HTTP's sake; the socket is the address.
	r, err := http.NewRequestWithContext(ctx, method, "http://pgsteerd"+path, body)
	if err != nil {
		return fmt.Errorf("writing the request: %w", err)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return c.explain(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("reading the daemon's answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		var f failure
		if err := json.Unmarshal(text, &f); err != nil || f.Error == "" {
			return fmt.Errorf("the daemon answered %s", answer.Status)
		}
		return &Error{answer.StatusCode, f.Error}
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("reading the daemon's answer: %w", err)
	}
	return nil
}

// explain says what a failure to connect means.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connecting to %s, which root and the group %s may: %w", c.socket, group, fs.ErrPermission)
	}
	return fmt.Errorf("asking the daemon: %w", err)
}
