package flowsync

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// Two nodes with different keys never meet, and both say why.
func TestOtherKey(t *testing.T) {
	ca, cb := testConfigs(t, newMemTable(), newMemTable())
	cb.Key, _ = testKey(t)
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)
	eventually(t, "both have counted it", func() bool {
		return count(la.Status().Failures, FailureKey) > 0 && count(lb2.Status().Failures, FailureRefused) > 0
	})
	if s := la.Status(); s.Connected || s.Connections != 0 || !strings.Contains(s.LastError, "the peer has another key") {
		t.Errorf("status: %+v", s)
	}
	if la.config.Key.Fingerprint() == lb2.config.Key.Fingerprint() {
		t.Error("two keys have one fingerprint")
	}
}

// dialAs connects to a node from the address of its peer.
func dialAs(t *testing.T, c Config) *net.TCPConn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.Peer.Addr().AsSlice()}}
	conn, err := d.DialContext(t.Context(), "tcp", c.Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func TestNoKey(t *testing.T) {
	_, cb := testConfigs(t, newMemTable(), newMemTable())
	l, _ := start(t, cb)
	conn := tls.Client(dialAs(t, cb), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a node talks to a stranger")
	}
	eventually(t, "it is counted", func() bool { return count(l.Status().Failures, FailureNoKey) == 1 })
	conn = tls.Client(dialAs(t, cb), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err := conn.Handshake(); err == nil {
		t.Error("a node speaks an old TLS")
	}
	eventually(t, "it is counted", func() bool { return count(l.Status().Failures, FailureTLS) == 1 })
}

func TestStranger(t *testing.T) {
	_, cb := testConfigs(t, newMemTable(), newMemTable())
	l, _ := start(t, cb)
	conn, err := net.Dial("tcp", cb.Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes", n)
	}
	eventually(t, "it is counted", func() bool { return count(l.Status().Failures, FailureAddress) == 1 })
}

// fakePeer shakes hands with a listening node and says hello in its own way.
func fakePeer(t *testing.T, c Config, frame []byte) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	conn := tls.Client(dialAs(t, c), c.Key.config())
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	if k, _, _, err := readFrame(r, nil); err != nil || k != kindHello {
		t.Fatalf("kind %d instead of a hello, %v", k, err)
	}
	return conn, r
}

func TestRefusedHello(t *testing.T) {
	for name, tc := range map[string]struct {
		frame []byte
		why   Failure
		says  string
	}{
		"an old version": {
			appendHello(nil, hello{lowest: 0, highest: minVersion - 1, node: "lb1"}), FailureVersion,
			"node lb2 speaks versions 1 to 1 of the protocol, node lb1 0 to 0",
		},
		"a newer version": {
			appendHello(nil, hello{lowest: maxVersion + 1, highest: maxVersion + 3, node: "lb1"}), FailureVersion,
			"node lb2 speaks versions 1 to 1 of the protocol, node lb1 2 to 4",
		},
		"the same name": {
			appendHello(nil, hello{lowest: minVersion, highest: maxVersion, node: "lb2"}), FailureNode,
			"both nodes are called lb2",
		},
		"no hello": {
			appendNumber(nil, kindAck, 7), FailureHello,
			"reading the peer's hello: malformed frame: kind 5 instead of a hello",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, cb := testConfigs(t, newMemTable(), newMemTable())
			l, _ := start(t, cb)
			_, r := fakePeer(t, cb, tc.frame)
			k, body, _, err := readFrame(r, nil)
			if err != nil || k != kindRefuse {
				t.Fatalf("kind %d instead of a refusal, %v", k, err)
			}
			if reason, err := parseReason(body); err != nil || reason != tc.says {
				t.Errorf("refused for %q, %v; want %q", reason, err, tc.says)
			}
			eventually(t, "it is counted", func() bool { return count(l.Status().Failures, tc.why) == 1 })
			if got := l.Status().LastError; got != tc.says {
				t.Errorf("last error: %q, want %q", got, tc.says)
			}
		})
	}
}

// A newer peer that still speaks our version is understood, whatever it appends
// to its hello.
func TestNewerPeer(t *testing.T) {
	_, cb := testConfigs(t, newMemTable(), newMemTable())
	l, _ := start(t, cb)
	frame := appendHello(nil, hello{lowest: minVersion, highest: maxVersion + 1, node: "lb1"})
	frame = endFrame(append(frame, "and more"...), 0)
	fakePeer(t, cb, frame)
	eventually(t, "the link", func() bool { s := l.Status(); return s.Connected && s.Version == maxVersion })
}

// A connection that the peer has given up, unknown to us, gives way to its next.
func TestReplaced(t *testing.T) {
	_, cb := testConfigs(t, newMemTable(), newMemTable())
	l, _ := start(t, cb)
	ours := appendHello(nil, hello{lowest: minVersion, highest: maxVersion, node: "lb1"})
	_, first := fakePeer(t, cb, ours)
	eventually(t, "the link", func() bool { return l.Status().Connected })
	fakePeer(t, cb, ours)
	eventually(t, "the next link", func() bool { s := l.Status(); return s.Connected && s.Connections == 2 })
	if got := l.Status().LastError; got != "the peer has made a new connection" {
		t.Errorf("last error: %q", got)
	}
	for {
		if _, _, _, err := readFrame(first, nil); err != nil {
			break
		}
	}
}

// A dialling node hears why the peer does not want it.
func TestRefusedByPeer(t *testing.T) {
	ca, cb := testConfigs(t, newMemTable(), newMemTable())
	listener, err := net.Listen("tcp", cb.Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, ca.Key.config())
			_, _ = conn.Write(appendReason(nil, kindRefuse, "not today"))
			_ = conn.CloseWrite()
			_, _, _, _ = readFrame(bufio.NewReader(conn), nil)
			conn.Close()
		}
	}()
	l, _ := start(t, ca)
	eventually(t, "it is counted", func() bool { return count(l.Status().Failures, FailureRefused) > 0 })
	if got := l.Status().LastError; got != "the peer refuses this node: not today" {
		t.Errorf("last error: %q", got)
	}
}

// A peer that falls silent is given up after the heartbeats that it misses, and
// one that talks nonsense at once.
func TestBadPeers(t *testing.T) {
	ours := appendHello(nil, hello{lowest: minVersion, highest: maxVersion, node: "lb1"})
	for name, tc := range map[string]struct {
		frame []byte
		says  string
	}{
		"silent":           {nil, "the peer has been silent for 60ms"},
		"unknown kind":     {appendNumber(nil, 99, 1), "reading from the peer: malformed frame: kind 99"},
		"too long":         {[]byte{0xff, 0, 0, 0, 1}, "reading from the peer: malformed frame: length 4278190080"},
		"batch missing":    {appendBegin(nil, begin{seq: 2, epoch: 1}), "reading from the peer: malformed frame: batch 2 follows batch 0"},
		"acknowledges all": {appendNumber(nil, kindAck, 1000), "reading from the peer: malformed frame: batch 1000 is acknowledged, but 0 was the last"},
	} {
		t.Run(name, func(t *testing.T) {
			_, cb := testConfigs(t, newMemTable(), newMemTable())
			if cb.Heartbeat = 20 * time.Millisecond; tc.frame == nil {
				cb.Missed = 3
			}
			l, _ := start(t, cb)
			conn, _ := fakePeer(t, cb, ours)
			if _, err := conn.Write(tc.frame); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the link is given up", func() bool { s := l.Status(); return s.Connections == 1 && !s.Connected })
			if got := l.Status().LastError; got != tc.says {
				t.Errorf("last error: %q, want %q", got, tc.says)
			}
		})
	}
}

func TestLoadKey(t *testing.T) {
	key, path := testKey(t)
	again, err := LoadKey(path)
	if err != nil || again.Fingerprint() != key.Fingerprint() {
		t.Errorf("loading again: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	want := "loading the key: " + path + " is open to group or others (mode 0640); run: chmod 600 " + path
	if _, err := LoadKey(path); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); err == nil || !strings.HasPrefix(err.Error(), "loading the key: "+path+": ") {
		t.Errorf("got %v", err)
	}
	if _, err := LoadKey(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
