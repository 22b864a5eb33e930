package pooler

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// wire is a network in a namespace of its own: the pooler's address is on its
// one interface, and the test plays every other host there.
type wire struct {
	t   *testing.T
	tun *os.File
}

// newWire makes the namespace and moves the test's goroutine into it, until the
// test's end. The thread must not end with the test: it may be the one that
// started PostgreSQL, which then would be killed (Pdeathsig).
func newWire(t *testing.T) *wire {
	t.Helper()
	if testing.Short() {
		t.Skip("makes a network namespace, which -short leaves out")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(netns.Set(home), home.Close()); err != nil {
			t.Error(err)
			return
		}
		runtime.UnlockOSThread()
	})
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("needs a TUN device: %v", err)
	}
	var request struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "wire")
	request.flags = unix.IFF_TUN | unix.IFF_NO_PI
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Fatal(errors.Join(errno, unix.Close(fd)))
	}
	w := &wire{t: t, tun: os.NewFile(uintptr(fd), "tun")}
	t.Cleanup(func() { w.tun.Close() })
	link, err := netlink.LinkByName("wire")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.AddrPort{pooler4, pooler6} {
		addr, err := netlink.ParseAddr(a.Addr().String() + map[bool]string{true: "/24", false: "/64"}[a.Addr().Is4()])
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	return w
}

// station is one end of a TCP connection that the test conducts by hand. On
// this wire nothing is lost or reordered.
type station struct {
	w        *wire
	at, to   netip.AddrPort
	label    uint32
	seq, ack uint32
	got      []byte
	ended    bool
}

// connect opens a connection with a SYN that has these options.
func (w *wire) connect(at, to netip.AddrPort, label uint32, options []byte) *station {
	w.t.Helper()
	s := &station{w: w, at: at, to: to, label: label, seq: 1000}
	syn := synHeaders(at, to, label, s.seq, options)
	s.seq++
	// The first SYNs may be lost: the kernel may still be setting up the routes
	// of the interface.
	for end := time.Now().Add(20 * time.Second); s.ack == 0; {
		if time.Now().After(end) {
			w.t.Fatalf("%v does not answer", to)
		}
		if _, err := w.tun.Write(syn); err != nil {
			w.t.Fatal(err)
		}
		w.deadline(100 * time.Millisecond)
		for s.ack == 0 && s.receive() {
		}
	}
	w.deadline(20 * time.Second)
	s.send(nil)
	return s
}

func (w *wire) deadline(d time.Duration) {
	w.t.Helper()
	if err := w.tun.SetReadDeadline(time.Now().Add(d)); err != nil {
		w.t.Fatal(err)
	}
}

// send sends a segment.
func (s *station) send(payload []byte) {
	s.w.t.Helper()
	const push = 0x08
	tcp := binary.BigEndian.AppendUint16(nil, s.at.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, s.to.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, s.seq)
	tcp = binary.BigEndian.AppendUint32(tcp, s.ack)
	tcp = append(tcp, tcpHeaderLen/4<<4, tcpFlagACK|push, 0xff, 0xff, 0, 0, 0, 0)
	if _, err := s.w.tun.Write(ipPacket(s.at.Addr(), s.to.Addr(), s.label, append(tcp, payload...))); err != nil {
		s.w.t.Fatal(err)
	}
	s.seq += uint32(len(payload))
}

// receive takes in one packet from the wire, and reports whether there was one
// in time.
func (s *station) receive() bool {
	s.w.t.Helper()
	buf := make([]byte, 1<<16)
	n, err := s.w.tun.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if err != nil {
		s.w.t.Fatal(err)
	}
	src, _, tcp, ok := cutIP(buf[:n])
	if !ok || src != s.to.Addr() || len(tcp) < tcpHeaderLen || binary.BigEndian.Uint16(tcp[2:]) != s.at.Port() {
		return true // routers being looked for, or the end of an earlier connection
	}
	const fin, reset = 0x01, 0x04
	seq, flags, payload := binary.BigEndian.Uint32(tcp[4:]), tcp[13], tcp[tcp[12]>>4*4:]
	switch {
	case flags&reset != 0:
		s.w.t.Fatal("connection reset")
	case flags&tcpFlagSYN != 0:
		s.ack = seq + 1
		return true
	case seq != s.ack:
		return true // sent again
	}
	s.got = append(s.got, payload...)
	s.ack += uint32(len(payload))
	if flags&fin != 0 {
		s.ack++
		s.ended = true
	}
	if len(payload) > 0 || s.ended {
		s.send(nil)
	}
	return true
}

// until returns the messages up to a ReadyForQuery.
func (s *station) until() []byte {
	s.w.t.Helper()
	ready := pgwire.AppendReadyForQuery(nil, pgwire.TxIdle)
	for !bytes.HasSuffix(s.got, ready) {
		if !s.receive() {
			s.w.t.Fatalf("no answer after %q", s.got)
		}
	}
	got := s.got
	s.got = nil
	return got
}

// shownAs logs in to the console and returns the address and port that SHOW
// CLIENTS has for this connection.
func (s *station) shownAs() string {
	s.w.t.Helper()
	s.send(startupPacket("database", "pgbouncer"))
	s.until()
	s.send(msgQuery("show clients"))
	frontend := pgproto3.NewFrontend(bytes.NewReader(s.until()), nil)
	shown := ""
	for {
		msg, err := frontend.Receive()
		if err != nil {
			s.w.t.Fatal(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			shown = string(msg.Values[5]) + " " + string(msg.Values[6])
		case *pgproto3.ReadyForQuery:
			s.send(terminateMsg)
			return shown
		}
	}
}

// setCookies sets when the kernel answers SYNs with cookies.
func setCookies(t *testing.T, when string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(when), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestClientBehindBalancer makes connections whose SYN names another client.
func TestClientBehindBalancer(t *testing.T) {
	w := newWire(t)
	start := func(trusted ...netip.Prefix) *testPooler {
		return startConsole(t, func(c *Config) {
			c.Listen = []string{pooler4.String(), pooler6.String()}
			c.ReusePort = true // the one before may not be gone yet
			c.TrustedBalancers = trusted
		})
	}
	good4 := slices.Concat(usualOptions, option4(client4))
	good6 := slices.Concat(usualOptions, option6(client6.Addr()))
	label := uint32(client6.Port())
	other4, other6 := netip.MustParseAddrPort("192.168.1.101:40001"), netip.MustParseAddrPort("[2001:db8::101]:40001")
	tests := []struct {
		name    string
		at, to  netip.AddrPort
		options []byte
		want    netip.AddrPort
		cookies bool
	}{
		{"IPv4", vip4, pooler4, good4, client4, false},
		{"IPv6", vip6, pooler6, good6, client6, false},
		{"IPv4, no option", vip4, pooler4, usualOptions, vip4, false},
		{"IPv6, no option", vip6, pooler6, usualOptions, vip6, false},
		{"IPv4, malformed", vip4, pooler4, slices.Concat(option4(client4), option4(client4)), vip4, false},
		{"IPv6, malformed", vip6, pooler6, option6(netip.IPv6Unspecified()), vip6, false},
		{"IPv4, not trusted", other4, pooler4, good4, other4, false},
		{"IPv6, not trusted", other6, pooler6, good6, other6, false},
		{"IPv4, SYN cookie", vip4, pooler4, good4, vip4, true},
		{"IPv6, SYN cookie", vip6, pooler6, good6, vip6, true},
	}
	shown := func(a netip.AddrPort) string { return fmt.Sprintf("%v %d", a.Addr(), a.Port()) }
	p := start(netip.PrefixFrom(vip4.Addr(), 32), netip.MustParsePrefix("2001:db8::100/128"))
	for i, tt := range tests {
		cookies := "1"
		if tt.cookies {
			cookies = "2" // always
		}
		setCookies(t, cookies)
		at, want := tt.at, tt.want
		at = netip.AddrPortFrom(at.Addr(), at.Port()+uint16(i)) // a connection of its own
		if want == tt.at {
			want = at
		}
		if got := w.connect(at, tt.to, label, tt.options).shownAs(); got != shown(want) {
			t.Errorf("%s: shown as %s, want %s", tt.name, got, shown(want))
		}
		line := fmt.Sprintf(`msg="login attempt" client=%v`, want)
		if !strings.Contains(p.log.String(), line) {
			t.Errorf("%s: no line with %s in the log", tt.name, line)
		}
	}
	p.stop()

	setCookies(t, "1")
	p = start()
	for _, tt := range tests[:2] {
		at := netip.AddrPortFrom(tt.at.Addr(), tt.at.Port()+100)
		if got := w.connect(at, tt.to, label, tt.options).shownAs(); got != shown(at) {
			t.Errorf("%s, nobody trusted: shown as %s, want %s", tt.name, got, shown(at))
		}
	}
	p.stop()

	// One listener for both families, where IPv4 comes in IPv6's form.
	p = startConsole(t, func(c *Config) {
		c.Listen, c.ReusePort = []string{fmt.Sprintf(":%d", pooler4.Port())}, true
		c.TrustedBalancers = []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("2001:db8::/64")}
	})
	for _, tt := range tests[:2] {
		at := netip.AddrPortFrom(tt.at.Addr(), tt.at.Port()+200)
		if got := w.connect(at, tt.to, label, tt.options).shownAs(); got != shown(tt.want) {
			t.Errorf("%s, any address: shown as %s, want %s", tt.name, got, shown(tt.want))
		}
	}
	p.stop()
}
