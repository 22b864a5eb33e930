package health

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Check asks one target once: nil is a success, and the error's text is what
// an operator reads. The deadline comes with ctx.
type Check func(ctx context.Context, addr netip.AddrPort) error

// TCP succeeds when a connection is accepted. It does not notice a process
// that is frozen: the kernel accepts for it.
func TCP() Check {
	return func(ctx context.Context, addr netip.AddrPort) error {
		conn, err := dial(ctx, addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// PostgresOptions is who the check says it is. Nothing is logged in to.
type PostgresOptions struct {
	User            string
	Database        string
	ApplicationName string // left out when empty
}

// maxReply bounds what is read of an answer, in bytes. The longest is an
// ErrorResponse; PostgreSQL's own are below 1 KB.
const maxReply = 16384

// Postgres succeeds when the server asks the user to authenticate, or lets him
// in: the first answer to a StartupMessage (PostgreSQL protocol, Start-up).
// An ErrorResponse, 53300 or 57P03 for example, is a failure.
//
// It ends as the protocol wants it: by Terminate where it was let in, by
// closing where it was asked for a password. In the midst of authentication
// PostgreSQL 15 logs a Terminate as FATAL ("expected SASL response") and
// PgBouncer 1.18 as a bad packet, but neither minds a client that closes
// (measured).
func Postgres(opts PostgresOptions) Check {
	var params []pgwire.Param
	if opts.ApplicationName != "" {
		params = append(params, pgwire.Param{Name: "application_name", Value: opts.ApplicationName})
	}
	startup := pgwire.AppendStartup(nil, pgwire.Protocol30, opts.User, opts.Database, params)
	return func(ctx context.Context, addr netip.AddrPort) error {
		conn, err := dial(ctx, addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			if err := conn.SetDeadline(deadline); err != nil {
				return describe(ctx, err)
			}
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if _, err := conn.Write(startup); err != nil {
			return describe(ctx, err)
		}
		letIn, err := readReply(conn)
		if err != nil {
			return describe(ctx, err)
		}
		if letIn {
			farewell(conn)
		}
		return nil
	}
}

const (
	// farewellTime is how long a server may take to close after Terminate. The
	// verdict is out by then, but the check is not over.
	farewellTime = 250 * time.Millisecond
	// maxFarewell bounds what is read meanwhile, in bytes: the parameters and
	// ReadyForQuery, a few hundred.
	maxFarewell = 64 << 10
)

// farewell says Terminate and reads until the server closes: closing on unread
// data would send a reset, which servers log as a lost client.
func farewell(conn net.Conn) {
	// Whatever fails here, the verdict stands and the connection is closed next.
	_ = conn.SetReadDeadline(time.Now().Add(farewellTime))
	if _, err := conn.Write(pgwire.AppendTerminate(nil)); err == nil {
		_, _ = io.CopyN(io.Discard, conn, maxFarewell)
	}
}

// readReply reads the first message and judges it. letIn: nothing more is asked
// of the client.
func readReply(r io.Reader) (letIn bool, err error) {
	var head [pgwire.HeaderLen]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return false, err
	}
	if head[0] != pgwire.MsgAuthentication && head[0] != pgwire.MsgErrorResponse {
		return false, fmt.Errorf("unexpected answer: byte %#02x", head[0])
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return false, err
	}
	typ, n, _ := pgwire.Header(head[:])
	if n < 0 || n > maxReply {
		return false, errors.New("unexpected answer: impossible length")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return false, err
	}
	if typ == pgwire.MsgAuthentication {
		if n < 4 {
			return false, errors.New("unexpected answer: authentication request without a method")
		}
		return binary.BigEndian.Uint32(body) == 0, nil // AuthenticationOk
	}
	e, err := pgwire.ParseError(body)
	if err != nil {
		return false, errors.New("unexpected answer: malformed error")
	}
	return false, errors.New(oneLine(e.Code + " " + e.Message))
}

// maxText bounds what is shown of a server's error, in bytes.
const maxText = 200

// oneLine makes a server's text fit for one line of a log, a page or a
// terminal: no control characters, a bounded length.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return strings.TrimSpace(s)
}

func dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, describe(ctx, err)
	}
	return conn, nil
}

// dialer leaves multipath TCP out: its options cost space in each SYN, and no
// pooler speaks it.
var dialer = func() *net.Dialer {
	d := &net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false)
	return d
}()

// describe says in a few words what went wrong.
func describe(ctx context.Context, err error) error {
	var errno syscall.Errno
	switch {
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return errNoAnswer
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("connection closed without an answer")
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		errors.As(err, &errno)
		return errors.New(errno.Error())
	case errors.As(err, &errno):
		return unreachable{errno}
	}
	return err
}

// unreachable is an error of this host's own: nothing came from the target.
type unreachable struct{ errno syscall.Errno }

func (u unreachable) Error() string { return u.errno.Error() }

// answered reports whether a check with this result has heard anything of the
// target, be it a refusal.
func answered(err error) bool {
	var u unreachable
	return !errors.Is(err, errNoAnswer) && !errors.As(err, &u)
}

// errNoAnswer is put into words by the checker, which knows the time.
var errNoAnswer = errors.New("no answer in time")
