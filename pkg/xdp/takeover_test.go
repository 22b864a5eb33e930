package xdp

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cable is the far end of the balancer's cable, with both clients and poolers
// behind it.
type cable struct {
	t  *testing.T
	fd int
}

func openCable(f *fixture) *cable {
	w := &cable{t: f.t}
	inNamespace(f.t, f.ns, func() error {
		lan1, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		if err := AttachPass(lan1.Attrs().Index); err != nil {
			return err
		}
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_IP)))
		if err != nil {
			return err
		}
		f.t.Cleanup(func() { unix.Close(w.fd) })
		err = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		return errors.Join(err, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: lan1.Attrs().Index}))
	})
	return w
}

func htons(v uint16) uint16 { return v>>8 | v<<8 }

func (w *cable) send(s segment) error {
	_, err := unix.Write(w.fd, s.frame())
	return err
}

// receive returns the next segment that came out of the balancer, or false
// after a while.
func (w *cable) receive(wait time.Duration) (segment, bool, error) {
	buffer := make([]byte, 9100)
	for deadline := time.Now().Add(wait); ; {
		n, from, err := unix.Recvfrom(w.fd, buffer, 0)
		if err == nil {
			if ll := from.(*unix.SockaddrLinklayer); ll.Pkttype != unix.PACKET_OUTGOING && n >= 54 && buffer[23] == unix.IPPROTO_TCP {
				return decode(w.t, buffer[:n]), true, nil
			}
			continue
		}
		left := time.Until(deadline)
		if !errors.Is(err, unix.EAGAIN) || left <= 0 {
			return segment{}, false, ignoreAgain(err)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return segment{}, false, err
		}
	}
}

func ignoreAgain(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return err
}

// exchange sends a segment, again when it is lost, and returns what it became.
// lost counts the tries that got nothing. Every flow of traffic has sequence
// numbers of its own, by which answers are told apart that come late.
func (w *cable) exchange(s segment, lost *int) (segment, error) {
	for range 100 {
		if err := w.send(s); err != nil {
			return segment{}, err
		}
		for {
			out, ok, err := w.receive(20 * time.Millisecond)
			if err != nil {
				return out, err
			}
			if !ok {
				*lost++
				break
			}
			if out.flags&rst != 0 && out.src == s.dst && out.dst == s.src {
				return out, fmt.Errorf("a reset for %+v", s)
			}
			if out.flags == s.flags && out.seq == s.seq {
				return out, nil
			}
		}
	}
	return segment{}, fmt.Errorf("no answer to %+v", s)
}

// traffic opens a connection, uses it and one of the earlier ones, and goes on
// with the next until it is told to stop. It is one exchange at a time.
func (w *cable) traffic(stop <-chan struct{}, first int) (made []segment, lost, exchanges int, err error) {
	next := func(s segment) (out segment) {
		if err == nil {
			out, err = w.exchange(s, &lost)
			exchanges++
		}
		return out
	}
	for n := first; err == nil; n++ {
		select {
		case <-stop:
			return made, lost, exchanges, nil
		default:
		}
		c := fromClient(syn)
		c.src, c.seq, c.ack = clientNumber(n), uint32(n)*1000, uint32(n)*1000+500
		next(next(c).answer(syn | ack))
		c.flags, c.seq = ack, c.seq+1
		b := next(c)
		for i := range min(len(made), 20) {
			next(next(made[(n+i)%len(made)]).answer(ack))
		}
		switch n % 3 {
		case 0: // closed by both
			c.flags = fin | ack
			next(next(c).answer(fin | ack))
		case 1: // reset by the backend
			r := b.answer(rst)
			next(r)
		default:
			made = append(made, c)
		}
	}
	return made, lost, exchanges, err
}

// A running program gives way to one with tables of another size, again and
// again, while connections are opened, used, closed and reset: none is lost, and
// the counts stay exact.
func TestTrafficDuringAnUpgrade(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.FlowTableSize = 1 << 18 })
	fill(t, f, 3000)
	w := openCable(f)
	stop := make(chan struct{})
	type result struct {
		made            []segment
		lost, exchanges int
		err             error
	}
	done := make(chan result)
	go func() {
		var r result
		r.made, r.lost, r.exchanges, r.err = w.traffic(stop, 100000)
		done <- r
	}()
	cfg := f.config
	for i := range 6 {
		f.must(f.Close())
		cfg.FlowTableSize = 1 << (17 + i%2)
		cfg.HalfOpenFlows = 1 << (10 + i%2)
		began := time.Now()
		f = open(t, cfg, f.ns)
		t.Logf("to %d entries in %v", cfg.FlowTableSize, time.Since(began))
	}
	close(stop)
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Logf("%d exchanges, %d segments had to be sent again, %d connections are left", r.exchanges, r.lost, len(r.made))
	for _, c := range r.made {
		f.expect(c, "tx_forward")
	}
	f.wantCounted(3000 + int64(len(r.made)))
	for _, v := range f.verdictCounts() {
		if v.Count > 0 && (v.Name == "tx_rst_client" || v.Name == "tx_rst_backend") {
			t.Errorf("%d %s", v.Count, v.Name)
		}
	}
}
