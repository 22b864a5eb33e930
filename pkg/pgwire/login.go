package pgwire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// ServerLogin is how to log in to a PostgreSQL server.
type ServerLogin struct {
	User, Database string
	// Secret answers the server's challenge: a plain password any of them, an
	// MD5 secret the MD5 challenge. A SCRAM verifier alone cannot log in.
	Secret Secret
	// Keys answer a SCRAM challenge where Secret has no plain password.
	Keys *ScramKeys
	// Cache spares the derivation of keys for all but the first of several
	// logins; nil is none.
	Cache *KeyCache
	// Params are run-time parameters for the startup packet.
	Params []Param
	// AllowCleartext lets the server ask for the password itself. Whoever
	// stands in for the server could then have it.
	AllowCleartext bool
	// Binding is the channel binding of the TLS connection that the login goes
	// over (tls-server-end-point), nil if there is none. With it the exchange is
	// SCRAM-SHA-256-PLUS where the server offers that.
	Binding []byte
}

// ServerSession is a session that a server has opened for us.
type ServerSession struct {
	Key    CancelKey // zero when the server gave none
	Params []Param   // the reported parameters, last value of each, in the order of arrival
}

// Sentinels wrapped by the errors of ConnectServer.
var (
	// ErrServerProtocol: the server's messages make no sense.
	ErrServerProtocol = errors.New("unexpected message from server")
	// ErrNoCredentials: the server asks for what we do not have.
	ErrNoCredentials = errors.New("no credentials for the server's authentication method")
)

// maxServerParams bounds what a server may report while we log in. PostgreSQL
// 18 reports 15 parameters, and extensions add a few.
const maxServerParams = 256

// ConnectServer logs in over a fresh connection and reads up to and including
// the server's first ReadyForQuery, not a byte further. It asks for protocol
// 3.0: the later ones change nothing that a pooler wants from a server.
//
// An *Error in the returned error is the server's own. When ctx ends, the
// connection's deadline is set to the past and ctx's error returned. After an
// error the connection is of no use; closing it is left to the caller.
func ConnectServer(ctx context.Context, conn net.Conn, login ServerLogin) (*ServerSession, error) {
	release := breakOnDone(ctx, conn)
	s, err := connectServer(conn, login)
	if cerr := release(); cerr != nil {
		return nil, fmt.Errorf("logging in to server: %w", cerr)
	}
	if err != nil {
		return nil, fmt.Errorf("logging in to server: %w", err)
	}
	return s, nil
}

// breakOnDone makes blocked reads and writes fail once ctx is done. Release
// ends that; it returns ctx's error if it was done before.
func breakOnDone(ctx context.Context, conn net.Conn) (release func() error) {
	stop := context.AfterFunc(ctx, func() {
		// The error has no use: a connection that cannot have a deadline is
		// closed already.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	return func() error {
		if stop() {
			return nil
		}
		return context.Cause(ctx)
	}
}

// serverLogin is the state of one login.
type serverLogin struct {
	conn  io.ReadWriter
	login ServerLogin
	scram *scramClient

	authenticated bool
	session       ServerSession
}

func connectServer(conn io.ReadWriter, login ServerLogin) (*ServerSession, error) {
	l := serverLogin{conn: conn, login: login}
	start := AppendStartup(nil, Protocol30, login.User, login.Database, login.Params)
	if err := writeAll(conn, start); err != nil {
		return nil, err
	}
	for {
		typ, body, err := ReadFrame(conn, MaxLoginLen)
		if err == io.EOF {
			return nil, fmt.Errorf("server closed the connection: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			if _, ours := errors.AsType[*Error](err); ours { // it is worded for a client
				return nil, fmt.Errorf("%w: message of type %d: %w", ErrServerProtocol, typ, ErrFrameLength)
			}
			return nil, fmt.Errorf("failed to read from server: %w", err)
		}
		ready, err := l.message(typ, body)
		if err != nil {
			return nil, err
		}
		if ready {
			return &l.session, nil
		}
	}
}

// message handles one message; ready is true after ReadyForQuery.
func (l *serverLogin) message(typ byte, body []byte) (ready bool, err error) {
	switch typ {
	case MsgErrorResponse:
		e, err := ParseError(body)
		if err != nil {
			return false, err
		}
		return false, e
	case MsgNoticeResponse:
		return false, nil
	case MsgAuthentication:
		if !l.authenticated {
			return false, l.auth(body)
		}
	case MsgParameterStatus:
		if l.authenticated {
			return false, l.param(body)
		}
	case MsgBackendKeyData:
		key, ok := ParseBackendKeyData(body)
		if l.authenticated && ok {
			l.session.Key = key
			return false, nil
		}
	case MsgReadyForQuery:
		if l.authenticated && len(body) == 1 && body[0] == TxIdle {
			return true, nil
		}
	}
	return false, fmt.Errorf("%w: type %d with %d bytes during login", ErrServerProtocol, typ, len(body))
}

func (l *serverLogin) param(body []byte) error {
	name, value, ok := ParseParameterStatus(body)
	if !ok {
		return fmt.Errorf("%w: malformed parameter status", ErrServerProtocol)
	}
	for i := range l.session.Params {
		if l.session.Params[i].Name == string(name) {
			l.session.Params[i].Value = string(value)
			return nil
		}
	}
	if len(l.session.Params) == maxServerParams {
		return fmt.Errorf("%w: more than %d parameters", ErrServerProtocol, maxServerParams)
	}
	l.session.Params = append(l.session.Params, Param{string(name), string(value)})
	return nil
}

// auth answers an Authentication message.
func (l *serverLogin) auth(body []byte) error {
	if len(body) < 4 {
		return fmt.Errorf("%w: authentication message of %d bytes", ErrServerProtocol, len(body))
	}
	code, data := binary.BigEndian.Uint32(body), body[4:]
	if l.scram != nil && code != authSASLContinue && code != authSASLFinal && !l.scram.verified {
		// A server that skips its own proof is none of ours.
		return fmt.Errorf("%w: SASL exchange left unfinished", ErrServerProtocol)
	}
	switch code {
	case authOK:
		l.authenticated = true
		return nil
	case authCleartext:
		if !l.login.AllowCleartext || l.login.Secret.Kind != SecretPlain {
			return fmt.Errorf("%w: server wants the password in clear text", ErrNoCredentials)
		}
		return writeAll(l.conn, appendPassword(nil, append([]byte(l.login.Secret.text), 0)))
	case authMD5:
		inner, ok := l.login.Secret.md5Inner(l.login.User)
		if !ok {
			return fmt.Errorf("%w: server wants md5, known is a %s", ErrNoCredentials, l.login.Secret)
		}
		if len(data) != 4 {
			return fmt.Errorf("%w: md5 salt of %d bytes", ErrServerProtocol, len(data))
		}
		return writeAll(l.conn, appendPassword(nil, append([]byte(md5Response(inner, data)), 0)))
	case authSASL:
		return l.startSASL(data)
	case authSASLContinue:
		if l.scram == nil || l.scram.authMsg != "" {
			break
		}
		reply, err := l.scram.final(string(data))
		if err != nil {
			return err
		}
		return writeAll(l.conn, appendPassword(nil, []byte(reply)))
	case authSASLFinal:
		if l.scram == nil || l.scram.authMsg == "" || l.scram.verified {
			break
		}
		return l.scram.verify(string(data))
	default:
		return fmt.Errorf("%w: server wants authentication method %d", ErrNoCredentials, code)
	}
	return fmt.Errorf("%w: SASL message out of order", ErrServerProtocol)
}

// startSASL picks SCRAM-SHA-256 from the server's list and opens the exchange.
func (l *serverLogin) startSASL(list []byte) error {
	if l.scram != nil {
		return fmt.Errorf("%w: second SASL exchange", ErrServerProtocol)
	}
	offered, plus := false, false
	for len(list) > 0 && list[0] != 0 {
		mechanism, rest, ok := cutCString(list)
		if !ok {
			return fmt.Errorf("%w: malformed list of SASL mechanisms", ErrServerProtocol)
		}
		offered = offered || bytes.Equal(mechanism, []byte(scramMechanism))
		plus = plus || bytes.Equal(mechanism, []byte(scramMechanismPlus))
		list = rest
	}
	bound := plus && l.login.Binding != nil
	if !offered && !bound {
		return fmt.Errorf("%w: server does not offer %s", ErrNoCredentials, scramMechanism)
	}
	derive, err := l.login.scramKeys()
	if err != nil {
		return err
	}
	l.scram = &scramClient{keys: derive, nonce: newNonce()}
	mechanism := scramMechanism
	switch {
	case bound:
		mechanism = scramMechanismPlus
		l.scram.gs2, l.scram.binding = scramBindingFlag+",", l.login.Binding
	case l.login.Binding != nil:
		l.scram.gs2 = scramNotOffered
	}
	return writeAll(l.conn, appendSASLInitial(nil, mechanism, l.scram.first()))
}

// scramKeys returns the source of keys for a SCRAM exchange.
func (l *ServerLogin) scramKeys() (func(salt []byte, iterations int) (ScramKeys, error), error) {
	switch {
	case l.Secret.Kind == SecretPlain && l.Cache != nil:
		return func(salt []byte, iterations int) (ScramKeys, error) {
			return l.Cache.derive(l.Secret.text, salt, iterations)
		}, nil
	case l.Secret.Kind == SecretPlain:
		return func(salt []byte, iterations int) (ScramKeys, error) {
			return deriveKeys(l.Secret.text, salt, iterations)
		}, nil
	case l.Keys != nil:
		keys := *l.Keys
		return func([]byte, int) (ScramKeys, error) { return keys, nil }, nil
	}
	return nil, fmt.Errorf("%w: server wants %s, known is a %s", ErrNoCredentials, scramMechanism, l.Secret)
}

// RequestCancel sends a CancelRequest over a fresh connection to the server and
// waits until the server closes it, which PostgreSQL does once the signal is
// sent. From then on the request hits no later query of the same session. Ctx
// and conn are as for ConnectServer.
func RequestCancel(ctx context.Context, conn net.Conn, key CancelKey) error {
	release := breakOnDone(ctx, conn)
	err := requestCancel(conn, key)
	if cerr := release(); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("canceling on server: %w", err)
	}
	return nil
}

func requestCancel(conn io.ReadWriter, key CancelKey) error {
	if _, err := conn.Write(AppendCancelRequest(nil, key)); err != nil {
		return fmt.Errorf("failed to send request: %w", err)
	}
	var one [1]byte
	switch n, err := conn.Read(one[:]); {
	case n > 0:
		return fmt.Errorf("%w: an answer to a cancel request", ErrServerProtocol)
	case err != nil && err != io.EOF:
		return fmt.Errorf("failed to wait for the server's close: %w", err)
	}
	return nil
}

// RequestTLS asks a server for TLS by an SSLRequest, over a fresh connection.
// When it is granted, the handshake is next; not a byte of it has been read
// (CVE-2021-23222). A server that answers with an error, as one before
// PostgreSQL 7 did or one that has no more processes, has its error ignored: it
// was not encrypted, so anybody could have sent it (CVE-2024-10977).
func RequestTLS(ctx context.Context, conn net.Conn) (granted bool, err error) {
	release := breakOnDone(ctx, conn)
	granted, err = requestTLS(conn)
	if cerr := release(); cerr != nil {
		return false, cerr
	}
	return granted, err
}

func requestTLS(conn io.ReadWriter) (granted bool, err error) {
	request := binary.BigEndian.AppendUint32(nil, 8)
	if err := writeAll(conn, binary.BigEndian.AppendUint32(request, codeSSL)); err != nil {
		return false, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return false, fmt.Errorf("failed to read from server: %w", err)
	}
	switch answer[0] {
	case 'S':
		return true, nil
	case 'N':
		return false, nil
	}
	return false, fmt.Errorf("%w: answer %d to a request for TLS", ErrServerProtocol, answer[0])
}
