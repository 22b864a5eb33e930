package pooler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// errServerNoTLS is a server's No where TLS must be.
var errServerNoTLS = errors.New("server refused TLS, which server_tls_sslmode demands")

// errServerCertificate is wrapped by what verify-ca finds.
var errServerCertificate = errors.New("certificate of server is not valid")

// dialServer connects to a server, with TLS where that is wanted. Session is nil
// if it is in plain text.
func (p *Pooler) dialServer(ctx context.Context, network, addr, host string) (net.Conn, *tlsSession, error) {
	conn, err := p.conf().TCP.dial(ctx, network, addr)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to server: %w", err)
	}
	t := p.conf().serverTLS
	if t == nil || network == "unix" {
		return conn, nil, nil
	}
	secured, session, err := secureServer(ctx, conn, t, host)
	if err != nil {
		_ = conn.Close() // nothing of it is of interest any more
		return nil, nil, err
	}
	return secured, session, nil
}

// secureServer asks a server for TLS, and goes on without only if it may.
func secureServer(ctx context.Context, conn net.Conn, t *serverTLS, host string) (net.Conn, *tlsSession, error) {
	granted, err := pgwire.RequestTLS(ctx, conn)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("asking server for TLS: %w", err)
	case !granted && t.mode >= TLSRequire:
		return nil, nil, errServerNoTLS
	case !granted:
		return conn, nil, nil
	}
	config := t.config
	if t.mode == TLSVerifyFull || net.ParseIP(host) == nil { // for the names of others: SNI
		config = config.Clone()
		config.ServerName = host
	}
	c, session, err := handshakeContext(ctx, conn, config)
	if err != nil {
		return nil, nil, fmt.Errorf("TLS handshake with server: %w", err)
	}
	return c, session, nil
}

// tlsRefused reports whether TLS with a server failed in a way that waiting does
// not mend: one of the sides refused the other.
func tlsRefused(err error) bool {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	return certificate || alert || errors.Is(err, errServerNoTLS) || errors.Is(err, errServerCertificate)
}

// describeTLS returns what the log says about a session with a server, and its
// channel binding. The session may be nil.
func (s *tlsSession) describeTLS() (info string, binding []byte) {
	if s == nil {
		return "", nil
	}
	state := s.conn.ConnectionState()
	return pgwire.TLSInfo(&state), endPoint(state.PeerCertificates[0])
}
