// Package web is an HTTP server for figures: small answers to a few who ask.
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

const (
	// headerTimeout bounds how long a client may take to ask, writeTimeout how
	// long to take the answer; the answers are a few kilobytes.
	headerTimeout = 5 * time.Second
	writeTimeout  = 20 * time.Second
	idleTimeout   = 60 * time.Second
	// maxConns keeps descriptors for health checks and adverts, whoever floods
	// the port. A browser takes six, a scraper one.
	maxConns = 64
	// MaxHeader is enough for a browser's cookies from a neighbouring port.
	MaxHeader = 16 << 10
	// drainTimeout is how long answers under way may take when stopping.
	drainTimeout = time.Second
)

// Server serves a handler at one port.
type Server struct {
	name string
	ln   net.Listener
	srv  *http.Server
	log  *slog.Logger
}

// Open binds the port. A port that is taken is an error here, not in Run. With
// shared, another process that also says so may have it, too. Name is what the
// port is called in errors.
func Open(name, listen string, shared bool, handler http.Handler, log *slog.Logger) (*Server, error) {
	var lc net.ListenConfig
	if shared {
		lc.Control = func(_, _ string, rc syscall.RawConn) error {
			var serr error
			err := rc.Control(func(fd uintptr) {
				serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			})
			return errors.Join(err, serr)
		}
	}
	ln, err := lc.Listen(context.Background(), "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("opening the %s port: %w", name, err)
	}
	return &Server{
		name: name,
		ln:   netutil.LimitListener(ln, maxConns),
		log:  log,
		srv: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       headerTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    MaxHeader,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}, nil
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Run serves until ctx ends, then lets the answers under way finish for a
// second, and returns nil.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.srv.Serve(s.ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving the %s port: %w", s.name, err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := s.srv.Shutdown(drain); err != nil {
		s.log.Debug("cut off a slow client", "port", s.name, "error", err)
		if err := s.srv.Close(); err != nil {
			s.log.Debug("closing a port", "port", s.name, "error", err)
		}
	}
	<-served
	return nil
}

// Close releases the port. It is needed where Run was never called and does no
// harm after it.
func (s *Server) Close() error {
	if err := s.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("closing the %s port: %w", s.name, err)
	}
	return nil
}
