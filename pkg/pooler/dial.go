package pooler

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// address returns where a database's server is, for net.Dial.
func (d *Database) address() (network, addr string) {
	port := strconv.Itoa(int(d.Port))
	if strings.HasPrefix(d.Host, "/") {
		return "unix", filepath.Join(d.Host, ".s.PGSQL."+port)
	}
	return "tcp", net.JoinHostPort(d.Host, port)
}

// dial implements world: it logs in one more server for a pool.
func (p *Pooler) dial(pl *pool) {
	login := pgwire.ServerLogin{
		User:     pl.key.user,
		Database: pl.db.DBName,
		Secret:   p.secretFor(pl),
		Keys:     pl.keys,
		Cache:    &pl.cache,
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
	return p.conf().Users[pl.key.user]
}

// connect opens and logs in one server connection.
func (p *Pooler) connect(db *Database, login pgwire.ServerLogin) (loggedIn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.conf().ServerConnectTimeout)
	defer cancel()
	network, addr := db.address()
	conn, err := p.conf().TCP.dial(ctx, network, addr)
	if err != nil {
		return loggedIn{}, fmt.Errorf("connecting to server: %w", err)
	}
	session, err := pgwire.ConnectServer(ctx, conn, login)
	if err != nil {
		_ = conn.Close() // the login's error says it all
		return loggedIn{}, err
	}
	n := loggedIn{
		id: p.ids.Add(1), key: session.Key, params: session.Params,
		network: network, addr: conn.RemoteAddr().String(), local: addrOf(conn.LocalAddr()),
	}
	if network == "unix" {
		n.addr = addr
	}
	if n.fd, err = takeFD(conn); err != nil {
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
	network, addr, key := sv.network, sv.addr, sv.key
	p.wg.Go(func() {
		if err := p.requestCancel(network, addr, key); err != nil {
			p.log.Warn("failed to cancel on server", "server", key.PID, "error", err)
		}
		// At the end of the loop nobody waits for it any more.
		p.loop.post(func() { p.loop.m.cancelDone(sv) })
	})
}

func (p *Pooler) requestCancel(network, addr string, key pgwire.CancelKey) error {
	// What a client that left has asked for must not run on because we stop:
	// then the request still has a second.
	ctx, cancel := context.WithTimeout(context.Background(), p.conf().CancelWaitTimeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, func() { time.AfterFunc(time.Second, cancel) })()
	conn, err := p.conf().TCP.dial(ctx, network, addr)
	if err != nil {
		return fmt.Errorf("connecting to server: %w", err)
	}
	defer conn.Close()
	return pgwire.RequestCancel(ctx, conn, key)
}
