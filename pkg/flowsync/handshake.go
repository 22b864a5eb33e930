package flowsync

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// The versions of the protocol that this program speaks. The hello itself is
// the same in all versions: newer ones may only append to it.
const (
	minVersion = 1
	maxVersion = 1
)

// helloMagic tells a hello from whatever else might speak TLS with our key.
const helloMagic = "pgsf"

// handshakeTime is how long a peer may take to get from its first packet to
// its hello.
const handshakeTime = 2 * time.Second

// hello is the first frame of each side.
type hello struct {
	lowest, highest uint16 // versions spoken
	node            string
}

func appendHello(dst []byte, h hello) []byte {
	f := append(beginFrame(dst, kindHello), helloMagic...)
	f = binary.BigEndian.AppendUint16(f, h.lowest)
	f = binary.BigEndian.AppendUint16(f, h.highest)
	return endFrame(appendText(f, h.node, maxNode), len(dst))
}

// parseHello is the inverse. What a newer version appended is ignored.
func parseHello(body []byte) (hello, error) {
	c := cursor{b: body}
	if string(c.take(len(helloMagic))) != helloMagic {
		return hello{}, malformed("it is no hello")
	}
	h := hello{lowest: c.u16(), highest: c.u16(), node: c.text(maxNode)}
	switch {
	case c.bad:
		return h, malformed("a hello is cut short")
	case h.lowest > h.highest:
		return h, malformed("versions %d to %d", h.lowest, h.highest)
	case h.node == "":
		return h, malformed("a node without a name")
	}
	return h, nil
}

// agree returns the version to speak, or why there is none. Both sides come to
// the same answer by themselves.
func agree(ours, theirs hello) (version uint16, err error) {
	if version = min(ours.highest, theirs.highest); version < max(ours.lowest, theirs.lowest) {
		return 0, &failed{FailureVersion, fmt.Errorf("node %s speaks versions %d to %d of the protocol, node %s %d to %d",
			ours.node, ours.lowest, ours.highest, theirs.node, theirs.lowest, theirs.highest)}
	}
	if ours.node == theirs.node {
		return 0, &failed{FailureNode, fmt.Errorf("both nodes are called %s", ours.node)}
	}
	return version, nil
}

// peerConn is a connection to a peer that has the key and speaks our language.
type peerConn struct {
	conn    *tls.Conn
	reader  *bufio.Reader
	node    string
	key     string // fingerprint of what it shows
	version uint16
}

// greet makes a peer of a fresh connection, or closes it.
func (l *Link) greet(ctx context.Context, raw *net.TCPConn) (_ *peerConn, err error) {
	config := l.config.Key.config()
	conn := tls.Server(raw, config)
	if l.config.dials() {
		conn = tls.Client(raw, config)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			raw.Close()
		}
	}()
	if err := tune(raw, l.config.dead()); err != nil {
		return nil, &failed{FailureConnect, err}
	}
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, &failed{failure(err, FailureTLS), fmt.Errorf("shaking hands: %w", err)}
	}
	p := &peerConn{conn: conn, reader: bufio.NewReaderSize(conn, 64<<10)}
	// VerifyConnection demands a certificate.
	p.key = fingerprint(conn.ConnectionState().PeerCertificates[0].Raw)
	if err := l.introduce(p); err != nil {
		return nil, err
	}
	return p, conn.SetDeadline(time.Time{})
}

// introduce exchanges hellos.
func (l *Link) introduce(p *peerConn) error {
	ours := l.hello
	if _, err := p.conn.Write(appendHello(nil, ours)); err != nil {
		return &failed{failure(err, FailureTLS), fmt.Errorf("sending the hello: %w", err)}
	}
	k, body, _, err := readFrame(p.reader, nil)
	if err != nil {
		return &failed{failure(err, FailureHello), fmt.Errorf("reading the peer's hello: %w", err)}
	}
	if k == kindRefuse {
		return refusedBy(body)
	}
	theirs, err := hello{}, malformed("kind %d instead of a hello", k)
	if k == kindHello {
		theirs, err = parseHello(body)
	}
	if err != nil {
		return l.refuse(p, &failed{FailureHello, fmt.Errorf("reading the peer's hello: %w", err)})
	}
	p.node = theirs.node
	if p.version, err = agree(ours, theirs); err != nil {
		return l.refuse(p, err)
	}
	return nil
}

// refuse tells the peer why, and returns the reason.
func (l *Link) refuse(p *peerConn, why error) error {
	// If it does not get there, the peer finds out by itself.
	_, _ = p.conn.Write(appendReason(nil, kindRefuse, why.Error()))
	_ = p.conn.CloseWrite()
	return why
}

// refusedBy is the error of a peer that has refused us.
func refusedBy(body []byte) error {
	reason, err := parseReason(body)
	if err != nil {
		return &failed{FailureHello, err}
	}
	return &failed{FailureRefused, fmt.Errorf("the peer refuses this node: %s", reason)}
}

// tune sets up the socket. Go sets TCP_NODELAY by itself; keep-alives are not
// needed beside heartbeats.
func tune(conn *net.TCPConn, dead time.Duration) error {
	if err := conn.SetKeepAlive(false); err != nil {
		return fmt.Errorf("setting up the connection: %w", err)
	}
	// Either buffer takes all of the window: a peer that is slow to store neither
	// blocks a write nor closes its TCP window, which TCP_USER_TIMEOUT would take
	// for death.
	if err := errors.Join(conn.SetReadBuffer(2*maxWindow), conn.SetWriteBuffer(2*maxWindow)); err != nil {
		return fmt.Errorf("setting up the connection: %w", err)
	}
	control, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("setting up the connection: %w", err)
	}
	var failed error
	err = control.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(dead.Milliseconds()))
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("setting TCP_USER_TIMEOUT: %w", err)
	}
	return nil
}
