package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

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
		if err := readReply(conn); err != nil {
			return describe(ctx, err)
		}
		// So that the server need not log a lost client. It may have gone first.
		_, _ = conn.Write(pgwire.AppendTerminate(nil))
		return nil
	}
}

// readReply reads the first message and judges it.
func readReply(r io.Reader) error {
	var head [pgwire.HeaderLen]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return err
	}
	if head[0] != pgwire.MsgAuthentication && head[0] != pgwire.MsgErrorResponse {
		return fmt.Errorf("unexpected answer: byte %#02x", head[0])
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return err
	}
	typ, n, _ := pgwire.Header(head[:])
	if n < 0 || n > maxReply {
		return errors.New("unexpected answer: impossible length")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if typ == pgwire.MsgAuthentication {
		if n < 4 {
			return errors.New("unexpected answer: authentication request without a method")
		}
		return nil
	}
	e, err := pgwire.ParseError(body)
	if err != nil {
		return errors.New("unexpected answer: malformed error")
	}
	return fmt.Errorf("%s %s", e.Code, e.Message)
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
	case errors.As(err, &errno):
		return errors.New(errno.Error())
	}
	return err
}

// errNoAnswer is put into words by the checker, which knows the time.
var errNoAnswer = errors.New("no answer in time")
