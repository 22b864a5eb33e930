package pooler

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
	"github.com/pgsteer/pgsteer/pkg/pooler/hba"
)

// AuthType says by what clients prove who they are.
type AuthType uint8

// The types. The names are PgBouncer's.
const (
	AuthPassword AuthType = iota // Config.AuthMethod
	AuthAny                      // by nothing, and the name is of no account: a database's own user is used
	AuthCert                     // a client certificate
	AuthPeer                     // being that user of the operating system, by Unix socket
	AuthHBA                      // Config.HBA
)

// Why a client is refused without having been asked for a password. The wording
// is PgBouncer's; the log has the cause.
var (
	errNoRule     = refusedLogin("no authentication method is found")
	errRejected   = refusedLogin("login rejected")
	errCert       = refusedLogin("certificate authentication failed")
	errPeer       = refusedLogin("unix socket login rejected")
	errAuthConfig = refusedLogin("bouncer config error")
)

func refusedLogin(message string) *pgwire.Error {
	return pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeInvalidAuthorization, message)
}

// authenticate has a client prove who it is.
func (p *Pooler) authenticate(conn net.Conn, s *pgwire.Startup, n *newcomer) (pgwire.Identity, error) {
	c := p.conf()
	as := pgwire.Identity{User: s.User, Database: s.Database}
	kind, method := c.AuthType, c.AuthMethod
	var rule *hba.Rule
	if kind == AuthHBA {
		if rule = c.HBA.Match(p.hbaClient(conn, s, n)); rule == nil {
			return as, errNoRule
		}
		p.log.Debug("HBA line is matched", "client", n.addr, "line", rule.Line, "method", string(rule.Method))
		var ok bool
		if kind, method, ok = byRule(rule.Method); !ok {
			return as, errRejected
		}
	}
	if kind == AuthAny {
		if s.Database == consoleDatabase {
			return as, nil // the console looks at the name itself
		}
		db := c.database(s.Database)
		if db == nil {
			return as, nil // which is refused as such
		}
		if db.User == "" {
			return as, fmt.Errorf("%w: auth_type=any requires forced user", errAuthConfig)
		}
		n.login = db.User
		return as, nil
	}
	secret, known, err := p.findUser(c, s)
	if err != nil {
		return as, err
	}
	if _, listed := c.lookup(s.User); !listed {
		n.secret = secret // for its servers
	}
	switch kind {
	case AuthCert:
		if err := checkCertificate(n.certs, s.User, rule); err != nil || !known {
			return as, fmt.Errorf("%w: %w", errCert, errors.Join(err, unknownUser(known)))
		}
		return as, nil
	case AuthPeer:
		if err := checkPeer(conn, s.User, rule); err != nil || !known {
			return as, fmt.Errorf("%w: %w", errPeer, errors.Join(err, unknownUser(known)))
		}
		return as, nil
	}
	r := &rationed{Conn: conn, slots: p.logins, done: p.ctx.Done()}
	r.acquire()
	defer r.release()
	return c.auth.Authenticate(r, s, pgwire.Challenge{Method: method, Secret: secret, Known: known, Binding: n.binding})
}

func unknownUser(known bool) error {
	if known {
		return nil
	}
	return pgwire.ErrUnknownUser
}

// byRule turns a rule's method into ours; ok is false for reject.
func byRule(m hba.Method) (AuthType, pgwire.AuthMethod, bool) {
	switch m {
	case hba.Trust:
		return AuthPassword, pgwire.AuthTrust, true
	case hba.MD5:
		return AuthPassword, pgwire.AuthMD5, true
	case hba.SCRAM:
		return AuthPassword, pgwire.AuthSCRAM, true
	case hba.Password:
		return AuthPassword, pgwire.AuthPlain, true
	case hba.Cert:
		return AuthCert, 0, true
	case hba.Peer:
		return AuthPeer, 0, true
	}
	return 0, 0, false
}

func (p *Pooler) hbaClient(conn net.Conn, s *pgwire.Startup, n *newcomer) *hba.Client {
	_, local := conn.(*net.UnixConn)
	return &hba.Client{
		Local: local, TLS: n.tls != nil, Addr: n.addr.Addr(), Database: s.Database, User: s.User, Own: ownNetworks,
	}
}

// ownNetworks are the host's addresses, each with its network.
func ownNetworks() []netip.Prefix {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil // then nobody is of the same host
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// checkCertificate looks whether a client's certificate, which is valid, names
// the user: by its common name or a DNS name, as in PgBouncer.
func checkCertificate(certs []*x509.Certificate, name string, rule *hba.Rule) error {
	if len(certs) == 0 {
		return errors.New("TLS client certificate required")
	}
	cert := certs[0]
	if !rule.Allows(name, func(called string) bool {
		return called != "" && (cert.Subject.CommonName == called || slices.Contains(cert.DNSNames, called))
	}) {
		return fmt.Errorf("TLS certificate name mismatch: it is for %q", cert.Subject.CommonName)
	}
	return nil
}

// checkPeer asks the kernel who is at the other end of a Unix socket.
func checkPeer(conn net.Conn, name string, rule *hba.Rule) error {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("not by a Unix socket")
	}
	rc, err := uc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || cerr != nil {
		return errors.Join(err, cerr)
	}
	u, err := user.LookupId(strconv.Itoa(int(cred.Uid)))
	if err != nil {
		return err
	}
	if !rule.Allows(name, func(called string) bool { return called == u.Username }) {
		return fmt.Errorf("the peer is the user %q of the operating system", u.Username)
	}
	return nil
}
