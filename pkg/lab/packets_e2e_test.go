package lab_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

const vip = "192.168.1.100"

// wire is a raw socket on the client's interface.
type wire struct {
	t   *testing.T
	lab *lab.Lab
	fd  int
	mac net.HardwareAddr // our own
}

// openWire opens a socket that sends and receives whole frames of one
// EtherType on the client's host.
func openWire(t *testing.T, l *lab.Lab, etherType uint16) *wire {
	t.Helper()
	w := &wire{t: t, lab: l}
	err := l.Do(lab.Client, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		w.mac = ifi.HardwareAddr
		proto := etherType<<8 | etherType>>8 // network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto))
		if err != nil {
			return err
		}
		w.fd = fd
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifi.Index})
	})
	if err != nil {
		t.Fatalf("opening a raw socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(dst net.HardwareAddr, etherType uint16, payload []byte) {
	w.t.Helper()
	frame := slices.Concat(dst, w.mac, binary.BigEndian.AppendUint16(nil, etherType), payload)
	if n, err := unix.Write(w.fd, frame); err != nil || n != len(frame) {
		w.t.Fatalf("sending %d bytes: %d, %v", len(frame), n, err)
	}
}

// receive returns the next frame, or nil at the deadline.
func (w *wire) receive(deadline time.Time) []byte {
	w.t.Helper()
	left := time.Until(deadline)
	if left <= 0 {
		return nil
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
	if errors.Is(err, unix.EINTR) {
		return w.receive(deadline)
	}
	if err != nil {
		w.t.Fatalf("receiving: %v", err)
	}
	if n == 0 {
		return nil
	}
	b := make([]byte, 2048)
	n, err = unix.Read(w.fd, b)
	if err != nil {
		w.t.Fatalf("receiving: %v", err)
	}
	return b[:n]
}

// arpAnswers asks who has an address and returns the hardware addresses of all
// who say that they do.
func arpAnswers(t *testing.T, l *lab.Lab, address string) []string {
	t.Helper()
	w := openWire(t, l, unix.ETH_P_ARP)
	target, own := netip.MustParseAddr(address).As4(), netip.MustParseAddr("192.168.1.50").As4()
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	// RFC 826: Ethernet, IPv4, lengths 6 and 4, request.
	request := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, w.mac, own[:], make([]byte, 6), target[:])
	w.send(broadcast, unix.ETH_P_ARP, request)
	var answers []string
	for deadline := time.Now().Add(500 * time.Millisecond); ; {
		frame := w.receive(deadline)
		if frame == nil {
			return answers
		}
		isReply := len(frame) >= 42 && frame[21] == 2 && bytes.Equal(frame[28:32], target[:])
		if from := net.HardwareAddr(frame[22:28]).String(); isReply && bytes.Equal(frame[0:6], w.mac) && !slices.Contains(answers, from) {
			answers = append(answers, from)
		}
	}
}

// ipv4 is a TCP segment to the VIP as it should be, for tests to spoil. The
// checksums are right.
func ipv4(port uint16, flags byte, payload int) []byte {
	b := make([]byte, 40+payload)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], []byte{192, 168, 1, 50, 192, 168, 1, 100})
	tcp := b[20:]
	binary.BigEndian.PutUint16(tcp[0:], port)
	binary.BigEndian.PutUint16(tcp[2:], 5432)
	binary.BigEndian.PutUint32(tcp[4:], 1000)
	tcp[12], tcp[13] = 5<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	checksums(b)
	return b
}

// checksums sets both checksums of an IPv4 packet with a 20-byte header.
func checksums(b []byte) {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b[:20]))
	tcp := b[20:]
	tcp[16], tcp[17] = 0, 0
	pseudo := sum(0, b[12:20]) // addresses, protocol, length
	pseudo = sum(uint32(pseudo)+unix.IPPROTO_TCP+uint32(len(tcp)), tcp)
	binary.BigEndian.PutUint16(tcp[16:], ^pseudo)
}

// sum is the Internet checksum (RFC 1071), not yet complemented.
func sum(s uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

const (
	flagFIN = 1
	flagSYN = 2
	flagRST = 4
	flagACK = 16
)

// testBadPackets sends what no proper client sends. Each kind is counted under
// its name, and nothing else changes.
func testBadPackets(t *testing.T, l *lab.Lab) {
	owner := active(t, l)
	quiet(t, l, owner)
	mac, err := lab.HardwareAddr(owner)
	if err != nil {
		t.Fatal(err)
	}
	verdicts := func() map[string]uint64 {
		stats, err := l.Datapath(owner)
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]uint64{}
		for _, v := range stats.Verdicts {
			m[v.Name] = v.Count
		}
		return m
	}
	w := openWire(t, l, unix.ETH_P_IP)
	spoilt := func(flags byte, spoil func(b []byte)) []byte {
		b := ipv4(4000, flags, 0)
		spoil(b)
		return b
	}
	for _, c := range []struct {
		name, verdict string
		packet        []byte
	}{
		{"IP header length 4", "drop_ip_header", spoilt(flagSYN, func(b []byte) { b[0] = 0x41 })},
		{"IP version 6", "drop_ip_header", spoilt(flagSYN, func(b []byte) { b[0] = 0x65 })},
		{"IP options", "drop_ip_options", spoilt(flagSYN, func(b []byte) { b[0] = 0x46 })},
		{"total length beyond the frame", "drop_ip_header", spoilt(flagSYN, func(b []byte) { binary.BigEndian.PutUint16(b[2:], 1400) })},
		{"first fragment", "drop_fragment", spoilt(flagSYN, func(b []byte) { b[6] = 0x20 })},
		{"last fragment", "drop_fragment", spoilt(flagSYN, func(b []byte) { b[7] = 10 })},
		{"TCP header length 4", "drop_tcp_header", spoilt(flagSYN, func(b []byte) { b[32] = 1 << 4 })},
		{"TCP header beyond the packet", "drop_tcp_header", spoilt(flagSYN, func(b []byte) { b[32] = 15 << 4 })},
		{"ACK of an unknown flow", "tx_rst_client", ipv4(4001, flagACK, 100)},
		{"FIN and SYN", "tx_rst_client", ipv4(4002, flagFIN|flagSYN, 0)},
		{"RST of an unknown flow", "drop_stray_rst", ipv4(4003, flagRST, 0)},
	} {
		before := verdicts()
		if _, ok := before[c.verdict]; !ok {
			t.Errorf("%s: there is no verdict %s", c.name, c.verdict)
			continue
		}
		w.send(mac, unix.ETH_P_IP, c.packet)
		eventually(t, 5*time.Second, func() error {
			if after := verdicts(); after[c.verdict] != before[c.verdict]+1 {
				return fmt.Errorf("%s: %s went from %d to %d; all: %v", c.name, c.verdict, before[c.verdict], after[c.verdict], after)
			}
			return nil
		})
	}
	// And what nobody has thought of.
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		b := ipv4(uint16(random.IntN(65536)), byte(random.IntN(256)), random.IntN(64))
		for range 1 + random.IntN(3) {
			b[random.IntN(len(b))] = byte(random.Uint32())
		}
		w.send(mac, unix.ETH_P_IP, b[:random.IntN(len(b)+1)])
	}
	if got := command(t, l, lab.Client, "psql", "-XAtc", "select 1"); got != "1\n" {
		t.Errorf("after the bad packets psql printed %q", got)
	}
	// Some of them may have opened flows; those age like any half-open one.
	quiet(t, l, owner)
}

// testBadClients sends to the VIP what is not PostgreSQL. Each gets an answer
// or a closed connection in time, and others are served meanwhile.
func testBadClients(t *testing.T, l *lab.Lab) {
	dial := l.DialContext(lab.Client)
	for _, c := range []struct {
		name, send, want string
	}{
		{"HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "FATAL"},
		{"a length of two gigabytes", "\x7f\xff\xff\xff\x00\x03\x00\x00", "FATAL"},
		{"a length of three", "\x00\x00\x00\x03\x00\x03\x00\x00", "FATAL"},
		{"TLS ClientHello", "\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + strings.Repeat("x", 190), ""},
		{"SSLRequest", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "N"},
		{"protocol 2", "\x00\x00\x00\x08\x00\x02\x00\x00", "FATAL"},
	} {
		conn, err := dial(within(t, 5*time.Second), "tcp", lab.Service)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.send); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1024)
		n, err := conn.Read(b)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: no answer within 10 s", c.name)
		}
		if !strings.Contains(string(b[:n]), c.want) {
			t.Errorf("%s: got %q, %v, want %q", c.name, b[:n], err, c.want)
		}
		conn.Close()
	}
	ctx := within(t, 10*time.Second)
	conn, err := connector(t, l)(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(context.WithoutCancel(ctx)); err != nil {
		t.Error(err)
	}
	quiet(t, l, active(t, l))
}
