package pooler

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// errAnswered ends a connection that needs no error: a cancel request.
var errAnswered = errors.New("request answered")

// errConsole is no failure: the client is to have the console.
var errConsole = errors.New("console session")

// login conducts a client's authentication. Without an error the
// connection has become the loop's.
func (p *Pooler) login(conn net.Conn, s *pgwire.Startup, n *newcomer, full bool) (refusal, error) {
	if s.Kind == pgwire.KindCancel {
		p.cancelClient(n.addr, s.Key)
		return refusedStartup, errAnswered
	}
	console := s.Database == consoleDatabase
	if full && !console {
		return refusedFull, errFull
	}
	n.protocol, n.login = s.Protocol, s.User
	if err := p.parameters(n, s); err != nil {
		return refusedParameter, err
	}
	if console && s.User == consoleDatabase && ownUser(conn) {
		n.own = true
		p.logLogin(n, s.Database)
		return 0, errConsole
	}
	id, err := p.authenticate(conn, s, n)
	if err != nil {
		return refusedAuth, err
	}
	if console {
		p.logLogin(n, s.Database)
		return 0, errConsole
	}
	n.from = p.conf()
	if n.database = n.from.database(s.Database); n.database == nil {
		return refusedDatabase, pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeInvalidCatalogName,
			fmt.Sprintf("no such database: %s", s.Database))
	}
	n.user, n.keys = id.User, id.Keys
	if u := n.database.User; u != "" {
		n.user, n.keys, n.secret = u, nil, pgwire.Secret{}
	}
	p.logLogin(n, s.Database)
	if n.fd, err = takeTLS(conn, n.tls); err != nil {
		return refusedStartup, err
	}
	if isLocal(conn) {
		// Its buffers are small.
	} else if err := unix.SetsockoptInt(n.fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLimit); err != nil {
		p.log.Warn("failed to bound a client's send buffer", "client", n.addr, "error", err)
	}
	if !p.loop.post(func() { p.adoptClient(*n) }) {
		return refusedShutdown, errors.Join(errShutdown, unix.Close(n.fd))
	}
	return 0, nil
}

func (p *Pooler) logLogin(n *newcomer, database string) {
	attrs := []any{"client", n.addr, "database", database, "user", n.login, "tls", cmp.Or(n.tlsInfo, "no")}
	if n.peer != n.addr {
		attrs = append(attrs, "balancer", n.peer)
	}
	p.log.Log(p.ctx, p.conf().limits.login, "login attempt", attrs...)
}

// cancelClient passes a cancel request on to the loop, and waits until it is
// carried out. The requester's connection is open until then, so that it knows
// when it can hit nothing else any more.
func (p *Pooler) cancelClient(from netip.AddrPort, key pgwire.CancelKey) {
	if p.cancelConsole(key) {
		return
	}
	known := p.isPeer(from.Addr()) // it has its own guessers
	if !known && !p.forwarding.guess.may(from.Addr(), time.Now()) {
		p.log.Debug("too many cancel requests for nobody", "client", from)
		return
	}
	if p.cancelHere(key) || p.cancelThere(key, true, true) || p.askSiblings(key) {
		return
	}
	forwarded, err := p.forwardCancel(key)
	if err != nil {
		p.log.Warn(err.Error(), "client", from)
	}
	if !known {
		p.forwarding.guess.missed(from.Addr(), time.Now())
	}
	if !forwarded {
		p.log.Debug("cancel request for nobody", "client", from)
	}
}

// cancelHere carries a cancel request out, if it is for a client of this process,
// and waits until that is done.
func (p *Pooler) cancelHere(key pgwire.CancelKey) (found bool) {
	done := make(chan struct{})
	if !p.ask(func(m *machine) { found = m.clientCancels(key, func() { close(done) }) }) || !found {
		return false
	}
	select {
	case <-done:
	case <-p.ctx.Done():
	}
	return true
}

// notSentLimit bounds what the kernel holds for a client beyond what is on its
// way, in bytes. Its own bound (tcp_wmem, 4 MB by default) times thousands of
// clients that do not read would be more than an instance's memory.
const notSentLimit = 128 << 10

// adoptClient gives a client to the machine. It runs in the loop.
func (p *Pooler) adoptClient(n newcomer) {
	gone := false
	if s := p.conf(); s != n.from { // a reload came between
		if db := s.database(n.database.Name); db != nil {
			n.database = db
		} else {
			n.database.auto, gone = true, true // so that the pool goes again
		}
	}
	cl := p.loop.m.addClient(n)
	if cl.dropped {
		return
	}
	if gone {
		p.loop.m.refuseClient(cl, refusedDatabase, errDatabaseRemoved)
	}
	if err := p.loop.watch(&cl.conn); err != nil {
		p.log.Error("failed to watch client", "client", n.addr, "error", err)
		p.loop.m.clientGone(cl, "cannot be watched")
	}
}

// parameters takes the startup parameters, which follow the client from server
// to server.
func (p *Pooler) parameters(n *newcomer, s *pgwire.Startup) error {
	for _, param := range s.Params {
		switch {
		case p.parameter(n, param.Name, param.Value):
		case param.Name == "replication" && isFalse(param.Value):
		case param.Name == "replication":
			return pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeFeatureNotSupported,
				"replication connections are not supported")
		case p.conf().ignore[strings.ToLower(param.Name)]:
		case param.Name == "options":
			if err := p.options(n, param.Value); err != nil {
				return err
			}
		default:
			n.extra = append(n.extra, param)
		}
	}
	if p.conf().AddHost {
		n.addHost()
	}
	return nil
}

// addHost puts the client's address behind its application name.
func (n *newcomer) addHost() {
	name := n.vars[varApplicationName]
	if !n.varsSet[varApplicationName] {
		name = "app" // PgBouncer's word
	}
	n.vars[varApplicationName] = fmt.Sprintf("%s - %s", name, endpoint(n.addr))
	n.varsSet[varApplicationName] = true
}

// endpoint writes the address of a client, in PgBouncer's form for a Unix socket.
func endpoint(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf("unix:%d", a.Port())
	}
	return a.String()
}

// parameter notes the value of a tracked parameter, and reports whether it is
// one.
func (p *Pooler) parameter(n *newcomer, name, value string) bool {
	i := varIndex(name)
	if i < 0 {
		return false
	}
	n.vars[i], n.varsSet[i] = value, true
	return true
}

// options takes the parameters in "options": "-c name=value" and
// "--name=value", separated by spaces, which a backslash protects (pg_split_opts
// in PostgreSQL's postinit.c).
func (p *Pooler) options(n *newcomer, text string) error {
	words := splitOptions(text)
	for i := 0; i < len(words); i++ {
		setting, ok := strings.CutPrefix(words[i], "--")
		if !ok {
			setting, ok = strings.CutPrefix(words[i], "-c")
			if ok && setting == "" && i+1 < len(words) {
				i++
				setting = words[i]
			}
		}
		name, value, found := strings.Cut(setting, "=")
		if !ok || !found {
			return pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
				"unsupported options startup parameter: only '-c name=value' and '--name=value' are allowed")
		}
		name = strings.ReplaceAll(name, "-", "_")
		if !p.parameter(n, name, value) && !p.conf().ignore[strings.ToLower(name)] {
			n.extra = append(n.extra, pgwire.Param{Name: name, Value: value})
		}
	}
	return nil
}

func splitOptions(text string) []string {
	var words []string
	var word strings.Builder
	inWord := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		if isSpace(c) {
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
			continue
		}
		if c == '\\' && i+1 < len(text) {
			i++
			c = text[i]
		}
		word.WriteByte(c)
		inWord = true
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// isFalse is PostgreSQL's parse_bool for the values that mean no replication.
func isFalse(v string) bool {
	switch strings.ToLower(v) {
	case "false", "off", "no", "0", "f", "n":
		return true
	}
	return false
}
