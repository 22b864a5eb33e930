package pooler

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// options returns the socket options of the connections that the loop has.
func (p *testPooler) options(get func(fd int) []int) (clients, servers [][]int) {
	p.t.Helper()
	p.ask(func(m *machine) {
		for _, c := range m.slots {
			switch {
			case c == nil:
			case c.cl != nil:
				clients = append(clients, get(c.fd))
			default:
				servers = append(servers, get(c.fd))
			}
		}
	})
	return clients, servers
}

// TestTCPOptions: the sockets of clients and servers have the options.
func TestTCPOptions(t *testing.T) {
	get := func(fd int) []int {
		var values []int
		for _, o := range [][2]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}, {unix.SOL_SOCKET, unix.SO_RCVBUF},
		} {
			v, err := unix.GetsockoptInt(fd, o[0], o[1])
			if err != nil {
				v = -1
			}
			values = append(values, v)
		}
		return values
	}
	for _, tt := range []struct {
		tcp  TCPOptions
		want []int // 0: whatever it is
	}{
		{TCPOptions{}, []int{1, 60, 15, 4, 0, 0}},
		{TCPOptions{KeepIdle: 7 * time.Second, KeepInterval: 6 * time.Second, KeepCount: 5, UserTimeout: 12345 * time.Millisecond, Buffer: 32 << 10},
			[]int{1, 7, 6, 5, 12345, 64 << 10}}, // the kernel doubles the buffer
	} {
		p := startPooler(t, func(c *Config) { c.TCP = tt.tcp })
		p.connect()
		clients, servers := p.options(get)
		if len(clients) != 1 || len(servers) != 1 {
			t.Fatalf("%d clients, %d servers", len(clients), len(servers))
		}
		for i, got := range [][]int{clients[0], servers[0]} {
			for j, want := range tt.want {
				if want != 0 && got[j] != want {
					t.Errorf("%+v: socket %d has options %v, want %v", tt.tcp, i, got, tt.want)
				}
			}
		}
	}
	p := startPooler(t, func(c *Config) { c.TCP = TCPOptions{NoKeepAlive: true} })
	p.connect()
	clients, servers := p.options(get)
	if clients[0][0] != 0 || servers[0][0] != 0 {
		t.Errorf("keepalive is on: client %v, server %v", clients, servers)
	}
}

// TestDeferAccept: the listener has the option if it is asked for.
func TestDeferAccept(t *testing.T) {
	for _, on := range []bool{false, true} {
		p := startPooler(t, func(c *Config) { c.TCP.DeferAccept = on })
		rc, err := p.listeners[0].(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		value := 0
		if cerr := rc.Control(func(fd uintptr) {
			value, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT)
		}); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if on != (value > 0) {
			t.Errorf("asked for %v, TCP_DEFER_ACCEPT is %d", on, value)
		}
		p.connect() // a client that speaks gets in
	}
}
