package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Poolers behind one address get each other's cancel requests. Those that know
// each other by [peers] forward them as PgBouncer does, with which they can be
// mixed (welcome_client in its proto.c, accept_cancel_request in its objects.c): the
// second and third byte of a key are the number of the pooler that gave it out,
// and the last two bits of the eighth say how often it may still be forwarded.
// Those of one host that have their control sockets in one directory ask each
// other without a configuration.

const (
	// maxForwards is what a new key says: PgBouncer's CANCELLATION_TTL_MASK.
	maxForwards = 3
	// maxForwarding bounds the requests to one peer at a time, whatever its
	// pool_size.
	maxForwarding = 100
)

// stampKey makes a key one of the pooler with the number id.
func stampKey(k *pgwire.CancelKey, id int) {
	if id == 0 {
		return
	}
	k.PID = k.PID&^0x00ffff00 | uint32(id&0xff)<<16 | uint32(id>>8&0xff)<<8
	k.Secret = withForwards(k.Secret, maxForwards)
}

// withForwards returns a secret with another count of forwards.
func withForwards(secret string, n byte) string {
	b := []byte(secret)
	b[3] = b[3]&^maxForwards | n
	return string(b)
}

// keyOwner returns which pooler gave a key out, and how often a request with it
// may still be forwarded.
func keyOwner(k pgwire.CancelKey) (id int, forwards byte) {
	return int(k.PID>>16&0xff) | int(k.PID>>8&0xff)<<8, k.Secret[3] & maxForwards
}

// enroll gives a client a cancel key that nobody has. The first four bytes need
// not be its own: with a number in them only 15 bits are left.
func (m *machine) enroll(cl *client) {
	for {
		cl.key = pgwire.NewCancelKey(cl.protocol)
		stampKey(&cl.key, m.limits.peerID)
		if m.clientByKey(cl.key) == nil {
			break
		}
	}
	m.addKey(cl)
}

func (m *machine) addKey(cl *client) {
	cl.sameKey = m.byPID[cl.key.PID]
	m.byPID[cl.key.PID] = cl
}

// dropKey takes a client's key away.
func (m *machine) dropKey(cl *client) {
	first := m.byPID[cl.key.PID]
	if first == cl {
		if cl.sameKey == nil {
			delete(m.byPID, cl.key.PID)
		} else {
			m.byPID[cl.key.PID] = cl.sameKey
		}
	} else {
		for at := first; at != nil; at = at.sameKey {
			if at.sameKey == cl {
				at.sameKey = cl.sameKey
				break
			}
		}
	}
	cl.sameKey = nil
}

// clientByKey returns whose key it is, or nil.
func (m *machine) clientByKey(k pgwire.CancelKey) *client {
	for cl := m.byPID[k.PID]; cl != nil; cl = cl.sameKey {
		if cl.key.Matches(k) {
			return cl
		}
	}
	return nil
}

// clientOfRequest returns whom a cancel request means, or nil. A peer that
// forwarded it has counted down in the key.
func (m *machine) clientOfRequest(k pgwire.CancelKey) *client {
	if cl := m.clientByKey(k); cl != nil || m.limits.peerID == 0 || len(k.Secret) < pgwire.SecretLen30 {
		return cl
	}
	k.Secret = withForwards(k.Secret, maxForwards)
	return m.clientByKey(k)
}

// forwarding is what goes on between us and the peers.
type forwarding struct {
	mu     sync.Mutex
	active map[int]int // requests on their way, by peer
	guess  guesses
}

// forwardCancel sends a cancel request on that is for a client of another pooler,
// and reports whether it was; whether there is such a client, that one knows.
func (p *Pooler) forwardCancel(k pgwire.CancelKey) (forwarded bool, err error) {
	conf := p.conf()
	if conf.PeerID == 0 || len(k.Secret) < pgwire.SecretLen30 {
		return false, nil
	}
	id, forwards := keyOwner(k)
	if id == conf.PeerID {
		return false, nil
	}
	var peer *Peer
	for i := range conf.Peers {
		if conf.Peers[i].ID == id {
			peer = &conf.Peers[i]
		}
	}
	switch {
	case forwards == 0:
		return false, errors.New("failed to forward cancel request because its TTL was exhausted")
	case peer == nil:
		return false, fmt.Errorf("failed to forward cancel request because the peer with ID %d does not exist", id)
	}
	if !p.forwarding.begin(id, peer.limit(conf.PoolSize)) {
		return false, fmt.Errorf("failed to forward cancel request because too many are on their way to peer %d", id)
	}
	defer p.forwarding.end(id)
	k.Secret = withForwards(k.Secret, forwards-1)
	ctx, cancel := context.WithTimeout(p.ctx, conf.CancelWaitTimeout)
	defer cancel()
	network, addr := peer.address()
	conn, err := conf.TCP.dial(ctx, network, addr)
	if err != nil {
		return false, fmt.Errorf("forwarding cancel request to peer %d: %w", id, err)
	}
	defer conn.Close()
	if err := pgwire.RequestCancel(ctx, conn, k); err != nil {
		return false, fmt.Errorf("forwarding cancel request to peer %d: %w", id, err)
	}
	return true, nil
}

func (peer *Peer) limit(poolSize int) int {
	if peer.PoolSize > 0 {
		poolSize = peer.PoolSize
	}
	return min(poolSize, maxForwarding)
}

// address returns where a peer is, for net.Dial.
func (peer *Peer) address() (network, addr string) {
	port := strconv.Itoa(int(peer.Port))
	if strings.HasPrefix(peer.Host, "/") {
		return "unix", filepath.Join(peer.Host, ".s.PGSQL."+port)
	}
	return "tcp", net.JoinHostPort(peer.Host, port)
}

func (f *forwarding) begin(id, limit int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active == nil {
		f.active = make(map[int]int)
	}
	if f.active[id] >= limit {
		return false
	}
	f.active[id]++
	return true
}

func (f *forwarding) end(id int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active[id]--; f.active[id] == 0 {
		delete(f.active, id)
	}
}

// counts returns the requests on their way, by peer.
func (f *forwarding) counts() map[int]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make(map[int]int, len(f.active))
	for id, n := range f.active {
		list[id] = n
	}
	return list
}

// siblingTimeout is for a pooler of the same host to answer.
const siblingTimeout = 2 * time.Second

// maxSiblings is how many are asked.
const maxSiblings = 64

// askSiblings has the other poolers with a control socket in the same directory
// look for a client. They ask nobody else.
func (p *Pooler) askSiblings(k pgwire.CancelKey) bool {
	own := p.conf().ControlSocket
	if own == "" || !strings.HasPrefix(filepath.Base(own), "pooler-") {
		return false
	}
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(own), "pooler-*.sock"))
	if err != nil || len(paths) > maxSiblings {
		return false
	}
	answers := make(chan bool, len(paths))
	asked := 0
	for _, path := range paths {
		if path != own {
			asked++
			p.wg.Go(func() { answers <- p.askSibling(path, k) })
		}
	}
	found := false
	for range asked {
		found = <-answers || found
	}
	return found
}

func (p *Pooler) askSibling(path string, k pgwire.CancelKey) bool {
	raw, err := net.DialTimeout("unix", path, siblingTimeout)
	if err != nil {
		return false // of one that was killed
	}
	c := newControl(raw.(*net.UnixConn))
	defer c.close()
	// The answer comes when the request has been carried out.
	if _, err := samePeer(c.conn); err != nil || c.conn.SetReadDeadline(time.Now().Add(p.conf().CancelWaitTimeout+siblingTimeout)) != nil {
		return false
	}
	if c.send(messageCancel, carriedCancel{1, k.PID, []byte(k.Secret)}) != nil {
		return false
	}
	kind, body, fds, err := c.receive()
	closeAll(fds)
	var a carriedAnswer
	return err == nil && kind == messageDone && decodeCarried(body, &a) == nil && !a.Failed
}

// answerSibling looks for a client on behalf of a pooler of the same host.
func (p *Pooler) answerSibling(c *control, body []byte) {
	var r carriedCancel
	if decodeCarried(body, &r) != nil {
		return
	}
	key := pgwire.CancelKey{PID: r.PID, Secret: string(r.Secret)}
	found := p.cancelHere(key) || p.cancelThere(key, true, true)
	// One that does not wait any more needs no answer.
	_ = c.send(messageDone, carriedAnswer{Seq: r.Seq, Failed: !found})
}

// How many cancel requests an address may send that concern none of our clients:
// so many at once, and so many a second. Beyond that its requests are not looked
// at. They are not few: behind a balancer without a client's address all come from
// one, and most are for other poolers. A guess hits one of 4000 clients with a
// probability of 2^-33 (45 random bits under peering), so it takes years.
const (
	guessBurst = 1000
	guessRate  = 100
	// maxGuessers bounds the addresses that are remembered.
	maxGuessers = 4096
)

// isPeer reports whether an address is that of a peer, if the configuration has it
// as an address.
func (p *Pooler) isPeer(addr netip.Addr) bool {
	for _, peer := range p.conf().Peers {
		if a, err := netip.ParseAddr(peer.Host); err == nil && a.Unmap() == addr.Unmap() {
			return true
		}
	}
	return false
}

// guesses counts requests that concern nobody, by address.
type guesses struct {
	mu   sync.Mutex
	from map[netip.Prefix]guesser
}

type guesser struct {
	tokens float64
	at     time.Time
}

// sourceOf is whom requests of an address are put down to: for IPv6 the network
// of a link, in which a host picks its address.
func sourceOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // valid for any address, zero without one
	return prefix
}

// may reports whether a request of an address is to be looked at.
func (g *guesses) may(addr netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	e, known := g.from[sourceOf(addr)]
	return !known || e.refilled(now).tokens >= 1
}

// missed notes a request that concerned nobody.
func (g *guesses) missed(addr netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := sourceOf(addr)
	e, known := g.from[key]
	if !known {
		if len(g.from) >= maxGuessers || g.from == nil {
			g.from = make(map[netip.Prefix]guesser)
		}
		e = guesser{tokens: guessBurst, at: now}
	}
	e = e.refilled(now)
	e.tokens = max(e.tokens-1, 0)
	g.from[key] = e
}

func (e guesser) refilled(now time.Time) guesser {
	e.tokens = min(guessBurst, e.tokens+guessRate*now.Sub(e.at).Seconds())
	e.at = now
	return e
}
