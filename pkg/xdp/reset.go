package xdp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
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
	raw     rawSockets

	lastError atomic.Pointer[error] // of sending, until it was logged
}

func newResetter() *resetter {
	return &resetter{wake: make(chan struct{}, 1), raw: rawSockets{-1, -1}}
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
				b.log.Info("reset the connections of a backend", "service", p.service, "backend", p.name, "flows", n)
			}
			if err := b.resets.lastError.Swap(nil); err != nil {
				b.log.Warn("not every reset could be sent; who got none is told when it speaks next",
					"service", p.service, "backend", p.name, "error", *err)
			}
		}
	}
}

// resetBackend resets the established flows of a backend and returns how many.
// Half-open ones are left alone: the program offers them to another backend.
func (b *Balancer) resetBackend(ctx context.Context, p placedBackend) (int, error) {
	const open = balancerFlowFlagFLOW_FORWARD | balancerFlowFlagFLOW_ESTABLISHED
	f, err := b.tables.of(p.addr.Addr())
	if err != nil {
		return 0, err
	}
	var found []half
	err = f.eachHalf(func(h *half) bool {
		if h.backend == p.index() && h.flags&(open|balancerFlowFlagFLOW_CLOSED) == open {
			found = append(found, *h)
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	done := 0
	for len(found) > 0 {
		if due, err := b.resetIsDue(f, p, found[0].vip); err != nil || !due {
			return done, err
		}
		n := min(len(found), resetBatch)
		reaped, err := b.resetAll(f, found[:n])
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

// resetIsDue reports whether the backend still takes no new flows and the
// address is ours.
func (b *Balancer) resetIsDue(f familyTables, p placedBackend, vip uint32) (bool, error) {
	var schedule scheduleRow
	if err := b.tables.schedules.Lookup(p.id, &schedule); err != nil {
		return false, fmt.Errorf("reading the schedule: %w", err)
	}
	until, err := f.lease(vip)
	if err != nil {
		return false, err
	}
	clock, err := b.tables.clock()
	if err != nil {
		return false, err
	}
	return schedule.Slots[p.slot].State != uint8(lb.Up) && until > clock.jiffies, nil
}

// resetAll tells both sides of each flow and forgets it. A side that does not
// hear its reset, or takes it for old because it has received more than it has
// acknowledged, is told again when it speaks: its flow is unknown by then.
func (b *Balancer) resetAll(f familyTables, flows []half) (int, error) {
	for i := range flows {
		h := &flows[i]
		b.sendReset(h.to, h.from, h.ack)
		if reverse, ok := f.reverse(h); ok && reverse.ack != 0 {
			b.sendReset(h.newFrom, h.newTo, reverse.ack)
		}
	}
	return f.reap(flows)
}

// sendReset sends what the receiver, which expects seq next, takes for the end
// (RFC 5961, 3.2).
func (b *Balancer) sendReset(from, to netip.AddrPort, seq uint32) {
	b.resets.note(b.resets.raw.send(from, to, seq, 0, tcpRST))
}

// note keeps the last failure to send. A segment may be lost here as on the
// wire, and that is no reason to stop.
func (r *resetter) note(err error) {
	if err != nil {
		r.lastError.Store(&err)
	}
}

// rawSockets send segments in the name of others, one socket a family. They are
// opened in the daemon's namespace and receive nothing.
type rawSockets struct{ four, six int }

func openRawSockets() (rawSockets, error) {
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	r := rawSockets{four: -1, six: -1}
	var err error
	// IPPROTO_RAW implies that we write the IP header.
	if r.four, err = unix.Socket(unix.AF_INET, kind, unix.IPPROTO_RAW); err != nil {
		return r, fmt.Errorf("opening a raw socket: %w", err)
	}
	r.six, err = unix.Socket(unix.AF_INET6, kind, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		r.six = -1 // a host without IPv6 has no flows in it
		return r, nil
	}
	if err != nil {
		return r, errors.Join(fmt.Errorf("opening a raw socket: %w", err), r.Close())
	}
	return r, nil
}

// Close closes those that are open.
func (r *rawSockets) Close() error {
	var errs []error
	for _, fd := range []int{r.four, r.six} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	r.four, r.six = -1, -1
	return errors.Join(errs...)
}

// send sends a segment without data.
func (r *rawSockets) send(from, to netip.AddrPort, seq, ack uint32, flags uint8) error {
	packet := bareSegment(from, to, seq, ack, flags)
	var err error
	if to.Addr().Is4() {
		err = unix.Sendto(r.four, packet, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	} else {
		err = unix.Sendto(r.six, packet, 0, &unix.SockaddrInet6{Addr: to.Addr().As16()})
	}
	if err != nil {
		return fmt.Errorf("sending a segment to %s: %w", to, err)
	}
	return nil
}
