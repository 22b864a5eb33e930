package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

const (
	// maxBody bounds a request's body, in bytes. The longest change has 120.
	maxBody = 4096
	// maxHeader bounds a request's header, in bytes, apart from the 4096 that
	// net/http adds.
	maxHeader = 4096
	// maxConns bounds the connections at a time. Those that wait are served when
	// others end, which requestTime sees to.
	maxConns = 16
	// requestTime is how long a request may take to arrive, and its answer to
	// be taken. People and scripts on the same host take milliseconds.
	requestTime = 5 * time.Second
	// idleTime is how long a connection may wait for its next request.
	idleTime = 30 * time.Second
	// shutdownTime is how long answers under way are waited for at the end.
	shutdownTime = time.Second
)

// Config says where to listen and what to steer.
type Config struct {
	Socket     string // absolute path; its directory is made if it is missing
	Controller *lb.Controller
	// Routers returns the virtual routers, in the order of configuration, and
	// Replication the link to the other node. Both are called only while the
	// server runs, from several goroutines. Nil is none.
	Routers     func() []Router
	Replication func() Replication
	// PeerHistory returns the moves that the other node has told of, the oldest
	// first, by a virtual router's number and family. Nil is none.
	PeerHistory func(vrid uint8, v6 bool) []PeerChange
	// Notifier returns what tells people, called as the first two.
	Notifier func() Notifier
	Log      *slog.Logger
}

// Server takes orders.
type Server struct {
	controller  *lb.Controller
	routers     func() []Router
	replication func() Replication
	peerHistory func(vrid uint8, v6 bool) []PeerChange
	notifier    func() Notifier
	log         *slog.Logger
	socket      *socket
	http        *http.Server
}

// Open listens. It takes a socket over that nobody listens on; the error
// matches ErrInUse when somebody does.
func Open(cfg Config) (*Server, error) {
	l, err := listen(cfg.Socket, cfg.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{
		controller: cfg.Controller, routers: cfg.Routers, replication: cfg.Replication, peerHistory: cfg.PeerHistory, notifier: cfg.Notifier, log: cfg.Log, socket: l,
	}
	if s.routers == nil {
		s.routers = func() []Router { return nil }
	}
	if s.replication == nil {
		s.replication = func() Replication { return nil }
	}
	if s.notifier == nil {
		s.notifier = func() Notifier { return nil }
	}
	if s.peerHistory == nil {
		s.peerHistory = func(uint8, bool) []PeerChange { return nil }
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/backends", s.backends)
	mux.HandleFunc("PATCH /v1/services/{service}/backends/{backend}", s.changeBackend)
	mux.HandleFunc("GET /v1/routers", s.listRouters)
	mux.HandleFunc("POST /v1/routers/{name}/resign", s.resign)
	mux.HandleFunc("POST /v1/routers/{name}/takeover", s.takeover)
	mux.HandleFunc("GET /v1/sync", s.syncStatus)
	mux.HandleFunc("GET /v1/notify", s.notifyStatus)
	mux.HandleFunc("POST /v1/notify/test", s.notifyTest)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, http.StatusNotFound, fmt.Errorf("there is no %s %s", r.Method, r.URL.Path))
	})
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: requestTime,
		ReadTimeout:       requestTime,
		WriteTimeout:      2 * requestTime, // counted from the end of the header
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
	}
	return s, nil
}

// Run serves until ctx ends, lets answers under way finish and returns nil.
func (s *Server) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error {
		err := s.http.Serve(s.socket)
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serving the admin socket: %w", err)
	})
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		if s.http.Shutdown(limit) != nil {
			_ = s.http.Close() // of connections that were given their time
		}
	})
	err := g.Wait()
	if !stop() {
		<-stopped
	}
	return err
}

// Close releases the socket and removes it.
func (s *Server) Close() error { return s.socket.Close() }

func (s *Server) backends(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, s.controller.Snapshot())
}

func (s *Server) changeBackend(w http.ResponseWriter, r *http.Request) {
	var change BackendChange
	if err := decode(w, r, &change); err != nil {
		s.fail(w, http.StatusBadRequest, err)
		return
	}
	by, err := peerOf(r.Context())
	if err != nil {
		s.fail(w, http.StatusInternalServerError, err)
		return
	}
	asked, err := change.change()
	var status lb.BackendStatus
	if err == nil {
		status, err = s.controller.Change(r.PathValue("service"), r.PathValue("backend"), asked, by.String())
	}
	switch {
	case errors.Is(err, lb.ErrBadChange):
		s.fail(w, http.StatusBadRequest, err)
	case errors.Is(err, lb.ErrUnknownBackend):
		s.fail(w, http.StatusNotFound, err)
	case errors.Is(err, lb.ErrNotPossible):
		s.fail(w, http.StatusConflict, err)
	case err != nil:
		s.log.Error("failed to do what an operator wants", "by", by.String(), "request", r.URL.Path, "error", err)
		s.fail(w, http.StatusInternalServerError, err)
	default:
		s.answer(w, http.StatusOK, status)
	}
}

var errNoBody = errors.New("the request has no body")

// decode reads a body that is one JSON value of v's kind and nothing else.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return fmt.Errorf("the request is longer than %d bytes", maxBody)
	case err != nil:
		return fmt.Errorf("reading the request: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); errors.Is(err, io.EOF) {
		return errNoBody
	} else if err != nil {
		return fmt.Errorf("the request makes no sense: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the request goes on after its end")
	}
	return nil
}

func (s *Server) fail(w http.ResponseWriter, status int, err error) {
	s.answer(w, status, failure{err.Error()})
}

func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		s.log.Error("failed to write an answer", "error", err)
		http.Error(w, `{"error": "writing the answer failed"}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(body, '\n')); err != nil {
		s.log.Debug("nobody waits for an answer", "error", err)
	}
}

// peer is the process at the other end, as the kernel knows it from the time
// of its connect.
type peer struct {
	uid uint32
	pid int32
}

func (p peer) String() string { return fmt.Sprintf("uid %d, pid %d", p.uid, p.pid) }

type peerKey struct{}

// withPeer notes who is at the other end of c, or why that is not known.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p, err := credentials(c.(*conn).UnixConn)
	if err != nil {
		return context.WithValue(ctx, peerKey{}, err)
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// peerOf returns what withPeer found: nothing is changed for nobody.
func peerOf(ctx context.Context) (peer, error) {
	switch v := ctx.Value(peerKey{}).(type) {
	case peer:
		return v, nil
	case error:
		return peer{}, v
	}
	return peer{}, errors.New("it is not known who asks")
}
