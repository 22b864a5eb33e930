package xdp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Flows of a dead backend are reset in batches, 10,000 a second: quick for
// those who wait, and no flood of reconnecting clients at once.
const (
	resetBatch = 100
	resetPause = 10 * time.Millisecond
)

// resetter is what ResetFlows and the goroutine of Run share, under mu.
type resetter struct {
	pending []placedBackend
	wake    chan struct{} // token
	fd      int           // raw socket, opened in the daemon's namespace

	lastError error // of sending; the goroutine's own
}

func newResetter() (resetter, error) {
	// IPPROTO_RAW implies that we write the IP header, and receives nothing.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return resetter{fd: -1}, fmt.Errorf("opening a raw socket: %w", err)
	}
	return resetter{wake: make(chan struct{}, 1), fd: fd}, nil
}

// ResetFlows implements lb.Datapath. It is a wish: nothing happens while
// another node owns the address, or if the backend is up again by then.
func (b *Balancer) ResetFlows(service, backend string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.placed {
		if p.service != service || p.name != backend {
			continue
		}
		b.resets.pending = append(b.resets.pending, p)
		select {
		case b.resets.wake <- struct{}{}:
		default:
		}
		return nil
	}
	return fmt.Errorf("%w: %s/%s", errNoSuchBackend, service, backend)
}

func (b *Balancer) resetLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.resets.wake:
		}
		b.mu.Lock()
		pending := b.resets.pending
		b.resets.pending = nil
		b.mu.Unlock()
		for _, p := range pending {
			n, err := b.resetBackend(ctx, p)
			if err != nil {
				return fmt.Errorf("resetting the flows of %s/%s: %w", p.service, p.name, err)
			}
			if n > 0 {
				b.log.Info("reset the connections of a backend that is down", "service", p.service, "backend", p.name, "flows", n)
			}
			if err := b.resets.lastError; err != nil {
				b.resets.lastError = nil
				b.log.Warn("not every reset could be sent; who got none is told when it speaks next",
					"service", p.service, "backend", p.name, "error", err)
			}
		}
	}
}

// flowHalf is an entry of the flow table.
type flowHalf struct {
	key balancerFlowKey
	val balancerFlow
}

// resetBackend resets the established flows of a backend and returns how many.
// Half-open ones are left alone: the program offers them to another backend.
func (b *Balancer) resetBackend(ctx context.Context, p placedBackend) (int, error) {
	const established, closed = balancerFlowFlagFLOW_ESTABLISHED, balancerFlowFlagFLOW_CLOSED
	var found []flowHalf
	var batch flowBatch
	err := batch.each(b.objs.Flows, func(key *balancerFlowKey, f *balancerFlow) bool {
		flags := balancerFlowFlag(f.Flags)
		if uint32(f.Backend) == p.index() && flags&(balancerFlowFlagFLOW_FORWARD|established|closed) == balancerFlowFlagFLOW_FORWARD|established {
			found = append(found, flowHalf{*key, *f})
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	done := 0
	for len(found) > 0 {
		if due, err := b.resetIsDue(p, found[0].key.Daddr); err != nil || !due {
			return done, err
		}
		n := min(len(found), resetBatch)
		reaped, err := b.resetAll(found[:n])
		done += reaped
		if err != nil {
			return done, err
		}
		if found = found[n:]; len(found) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return done, nil
		case <-time.After(resetPause):
		}
	}
	return done, nil
}

// resetIsDue reports whether the backend is still down and the address ours.
func (b *Balancer) resetIsDue(p placedBackend, vip uint32) (bool, error) {
	var schedule balancerSchedule
	if err := b.objs.Schedules.Lookup(p.id, &schedule); err != nil {
		return false, fmt.Errorf("reading the schedule: %w", err)
	}
	var row balancerVip
	if err := b.objs.Vips.Lookup(vip, &row); err != nil {
		return false, fmt.Errorf("looking up virtual address %s: %w", addrOf(vip), err)
	}
	return schedule.Slots[p.slot].State == uint8(lb.Down) && row.LeaseUntil > monotonic(), nil
}

// resetAll tells both sides of each flow and forgets it. A side that does not
// hear its reset, or takes it for old because it has received more than it has
// acknowledged, is told again when it speaks: its flow is unknown by then.
func (b *Balancer) resetAll(flows []flowHalf) (int, error) {
	requests := make([]balancerReapRequest, len(flows))
	for i := range flows {
		key, f := &flows[i].key, &flows[i].val
		requests[i] = balancerReapRequest{Key: *key, Force: 1}
		client, service := addrPortOf(key.Saddr, key.Sport), addrPortOf(key.Daddr, key.Dport)
		b.sendReset(service, client, f.Ack)
		var reverse balancerFlow
		if b.objs.Flows.Lookup(peerKey(f), &reverse) == nil && reverse.Ack != 0 {
			snat := addrPortOf(f.Rewritten.Saddr, f.Rewritten.Sport)
			backend := addrPortOf(f.Rewritten.Daddr, f.Rewritten.Dport)
			b.sendReset(snat, backend, reverse.Ack)
		}
	}
	return b.reap(requests)
}

// sendReset sends what the receiver, which expects seq next, takes for the end
// (RFC 5961, 3.2). It may be lost here as on the wire, and that is no reason to
// stop: the last failure is kept for the log.
func (b *Balancer) sendReset(from, to netip.AddrPort, seq uint32) {
	packet := resetPacket(from, to, seq)
	if err := unix.Sendto(b.resets.fd, packet[:], 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
		b.resets.lastError = fmt.Errorf("sending a reset to %s: %w", to, err)
	}
}

// resetPacket is an IPv4 packet with a TCP segment (RFC 9293, 3.1) that has RST
// alone set. The kernel fills in the IP checksum and identification.
func resetPacket(from, to netip.AddrPort, seq uint32) (b [40]byte) {
	src, dst := from.Addr().As4(), to.Addr().As4()
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], 0x4000) // do not fragment
	b[8], b[9] = 64, unix.IPPROTO_TCP
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	tcp := b[20:]
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = 5<<4, 4
	// Over the pseudo header: addresses, protocol and length.
	sum := uint32(unix.IPPROTO_TCP + len(tcp))
	for i := 12; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	return b
}
