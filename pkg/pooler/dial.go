package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// dial implements world: it logs in one more server for a pool.
func (p *Pooler) dial(pl *pool) {
	login := pgwire.ServerLogin{
		User:     pl.key.user,
		Database: pl.db.DBName,
		Secret:   p.secretFor(pl),
		Keys:     pl.keys,
		Cache:    &pl.cache,
		Params:   pl.db.Params,
	}
	db, epoch := pl.db, pl.epoch
	p.wg.Go(func() {
		n, err := p.connect(db, login)
		if err != nil {
			e, lasting := lastingFailure(err)
			// At the end of the loop nobody wants to know any more.
			p.loop.post(func() { p.loop.m.loginFailed(pl, e, lasting) })
			return
		}
		n.epoch = epoch
		if !p.loop.post(func() { p.adoptServer(pl, n) }) {
			_ = unix.Close(n.fd)
		}
	})
}

// secretFor returns what proves the pool's user to the server.
func (p *Pooler) secretFor(pl *pool) pgwire.Secret {
	if pl.db.Secret.Kind != pgwire.SecretNone {
		return pl.db.Secret
	}
	if s, ok := p.conf().lookup(pl.key.user); ok {
		return s
	}
	return pl.secret
}

// place is where a server may be.
type place struct {
	host          string // as the configuration has it
	network, addr string // for net.Dial
	byName        bool   // host is a name with addresses
}

// places returns where a host of a database can be reached.
func (p *Pooler) places(ctx context.Context, d *Database, host string) ([]place, error) {
	port := strconv.Itoa(int(d.Port))
	if strings.HasPrefix(host, "/") {
		return []place{{host: host, network: "unix", addr: filepath.Join(host, ".s.PGSQL."+port)}}, nil
	}
	addrs, err := p.addresses.resolve(ctx, host, p.conf().DNSMaxTTL, p.conf().DNSNotFoundTTL)
	if err != nil {
		return nil, fmt.Errorf("server DNS lookup failed: %w", err)
	}
	list := make([]place, len(addrs))
	for i, a := range addrs {
		list[i] = place{host: host, network: "tcp", addr: net.JoinHostPort(a.String(), port), byName: a.String() != host}
	}
	return list, nil
}

// connect opens and logs in one server connection, to the first of the
// database's hosts that can be reached and has the right role.
func (p *Pooler) connect(db *Database, login pgwire.ServerLogin) (loggedIn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.conf().ServerConnectTimeout)
	defer cancel()
	n, err := p.connectFirst(ctx, db, db.Target, login)
	if u, _ := errors.AsType[*unfit](err); u != nil && db.Target == TargetPreferStandby {
		return p.connectFirst(ctx, db, TargetAny, login)
	}
	return n, err
}

// headStart is how long one of several hosts is waited for before the next is
// tried beside it: a machine that died does not even refuse. A login takes some
// milliseconds, a lost packet of one 200.
const headStart = time.Second

// attempt is what came of a login at one host.
type attempt struct {
	host string
	n    loggedIn
	err  error
}

// connectFirst tries a database's hosts in their order until one will do.
func (p *Pooler) connectFirst(ctx context.Context, db *Database, target TargetSession, login pgwire.ServerLogin) (loggedIn, error) {
	hosts := p.hosts.order(db, time.Now(), p.conf().ServerLoginRetry)
	if len(hosts) == 1 {
		return p.connectHost(ctx, db, hosts[0], target, login)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan attempt, len(hosts)) // nobody waits to put one in
	under := make(map[string]time.Time)       // since when
	begin := func() {
		host := hosts[0]
		hosts = hosts[1:]
		under[host] = time.Now()
		p.wg.Go(func() {
			n, err := p.connectHost(ctx, db, host, target, login)
			results <- attempt{host, n, err}
		})
	}
	// Whatever is under way when it is decided is ended, and what comes of it
	// closed.
	defer func() {
		cancel()
		for range len(under) {
			if a := <-results; a.err == nil {
				_ = unix.Close(a.n.fd)
			}
		}
	}()
	next := time.NewTicker(headStart)
	defer next.Stop()
	var errs []error
	for begin(); len(under) > 0; {
		select {
		case <-next.C:
		case a := <-results:
			now := time.Now()
			delete(under, a.host)
			p.hosts.tried(db, a.host, now, a.err == nil)
			if a.err == nil {
				for host, since := range under {
					if now.Sub(since) >= headStart {
						p.hosts.tried(db, host, now, false) // it has not answered
					}
				}
				return a.n, nil
			}
			fit, _ := errors.AsType[*unfit](a.err)
			if _, lasting := lastingFailure(a.err); fit == nil && lasting {
				return loggedIn{}, a.err
			}
			errs = append(errs, fmt.Errorf("%s: %w", a.host, a.err))
			next.Reset(headStart)
		}
		if len(hosts) > 0 && ctx.Err() == nil {
			begin()
		}
	}
	// Whatever they said, another attempt may find another state of affairs.
	return loggedIn{}, &noHost{errs}
}

// noHost is the failure of all hosts of a database.
type noHost struct{ errs []error }

func (e *noHost) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	return "no host will do: " + strings.Join(texts, "; ")
}

// As finds a host that had the wrong role, for connect; not the errors of
// servers, which would pass for the answer of the database.
func (e *noHost) As(target any) bool {
	u, ok := target.(**unfit)
	if !ok {
		return false
	}
	for _, err := range e.errs {
		if errors.As(err, u) {
			return true
		}
	}
	return false
}

// connectHost tries the addresses of one host.
func (p *Pooler) connectHost(ctx context.Context, db *Database, host string, target TargetSession, login pgwire.ServerLogin) (n loggedIn, err error) {
	places, err := p.places(ctx, db, host)
	if err != nil {
		return loggedIn{}, err
	}
	for _, at := range places {
		if n, err = p.connectTo(ctx, at, target, login); err == nil {
			return n, nil
		}
		if _, lasting := lastingFailure(err); lasting {
			break
		}
	}
	return loggedIn{}, err
}

// connectTo opens and logs in one server connection at a place.
func (p *Pooler) connectTo(ctx context.Context, at place, target TargetSession, login pgwire.ServerLogin) (loggedIn, error) {
	conn, secured, err := p.dialServer(ctx, at.network, at.addr, at.host)
	if err != nil {
		return loggedIn{}, err
	}
	info, binding := secured.describeTLS()
	login.Binding = binding
	session, err := pgwire.ConnectServer(ctx, conn, login)
	if err != nil {
		_ = conn.Close() // the login's error says it all
		return loggedIn{}, err
	}
	if err := target.check(ctx, conn, session.Params); err != nil {
		// It closes anyway, if it does not take five bytes.
		_, _ = conn.Write(terminateMsg)
		_ = conn.Close()
		return loggedIn{}, err
	}
	n := loggedIn{
		id: p.ids.Add(1), key: session.Key, params: session.Params, tls: secured, host: at.host, byName: at.byName,
		network: at.network, addr: conn.RemoteAddr().String(), local: addrOf(conn.LocalAddr()),
	}
	if at.network == "unix" {
		n.addr = at.addr
	}
	n.tlsInfo = info
	if n.fd, err = takeTLS(conn, secured); err != nil {
		return loggedIn{}, err
	}
	return n, nil
}

// adoptServer gives a server to the machine. It runs in the loop.
func (p *Pooler) adoptServer(pl *pool, n loggedIn) {
	sv := p.loop.m.addServer(pl, n)
	if sv.dropped {
		return
	}
	if err := p.loop.watch(&sv.conn); err != nil {
		p.log.Error("failed to watch server", "server", n.key.PID, "error", err)
		p.loop.m.serverEnded(sv)
	}
}

// cancelOn implements world: it sends a cancel request to a server.
func (p *Pooler) cancelOn(sv *server) {
	network, addr, host, key := sv.network, sv.addr, sv.host, sv.key
	p.wg.Go(func() {
		if err := p.requestCancel(network, addr, host, key); err != nil {
			p.log.Warn("failed to cancel on server", "server", key.PID, "error", err)
		}
		// At the end of the loop nobody waits for it any more.
		p.loop.post(func() { p.loop.m.cancelDone(sv) })
	})
}

func (p *Pooler) requestCancel(network, addr, host string, key pgwire.CancelKey) error {
	// What a client that left has asked for must not run on because we stop:
	// then the request still has a second.
	ctx, cancel := context.WithTimeout(context.Background(), p.conf().CancelWaitTimeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, func() { time.AfterFunc(time.Second, cancel) })()
	conn, _, err := p.dialServer(ctx, network, addr, host)
	if err != nil {
		return err
	}
	defer conn.Close()
	return pgwire.RequestCancel(ctx, conn, key)
}
