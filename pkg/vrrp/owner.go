package vrrp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgsteer/pgsteer/internal/mute"
)

// auditInterval is how often the owner looks whether its addresses are still
// there, beside being told of changes by the kernel, and makes them stay longer.
const auditInterval = time.Second

// addressSpare is what an address outlives its last renewal by, beyond the
// lease: long enough that three renewals can be late, or held up by whoever has
// the kernel's rtnetlink lock, before a served address vanishes. Short is
// pointless, because the fence has made the node silent long before.
const addressSpare = 3 * time.Second

// addressBook is what the owner needs of the kernel.
type addressBook interface {
	list() ([]netip.Prefix, error)
	add(netip.Prefix) error // or make it stay longer
	remove(netip.Addr) (bool, error)
	hardware() (net.HardwareAddr, error)
}

// herald is what the owner needs to announce an address.
type herald interface {
	name() string // of what it sends
	announce(net.HardwareAddr, netip.Addr) (int, error)
}

// owner keeps the virtual addresses on the interface, or off it, and announces
// them. It runs beside the router, whose orders never wait: adding an address
// can take as long as somebody holds the kernel's rtnetlink lock.
type owner struct {
	addresses []netip.Prefix
	book      addressBook
	herald    herald
	now       clock
	log       *slog.Logger
	leased    func() bool   // the router still holds its lease
	faults    chan<- string // capacity 1: why the addresses cannot be owned
	changed   chan struct{} // token: the kernel's addresses may have changed
	wake      chan struct{} // token: an order was given
	announced atomic.Uint64
	failed    atomic.Uint64
	restored  atomic.Uint64

	mu    sync.Mutex
	want  bool          // the addresses shall be ours
	fresh bool          // announce them from the beginning
	gone  chan struct{} // closed when they are given up, or wanted again; nil: we have none

	held     bool // the rest belongs to run
	schedule schedule
	audit    time.Duration // when to look again
	renewal  time.Duration // when to make the addresses stay longer
	mute     mute.Limiter
}

// own orders the addresses to be taken and announced.
func (o *owner) own() { o.order(true, true) }

// disown orders the addresses to be given up.
func (o *owner) disown() { o.order(false, false) }

// again orders the announcements to begin anew, if the addresses are ours.
func (o *owner) again() {
	o.mu.Lock()
	want := o.want
	o.mu.Unlock()
	if want {
		o.order(true, true)
	}
}

func (o *owner) order(want, fresh bool) {
	o.mu.Lock()
	if want && !o.want {
		o.settleLocked()
		o.gone = make(chan struct{})
	}
	o.want, o.fresh = want, fresh
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// given returns a channel that is closed once the addresses are given up.
func (o *owner) given() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone == nil {
		none := make(chan struct{})
		close(none)
		return none
	}
	return o.gone
}

func (o *owner) settleLocked() {
	if o.gone != nil {
		close(o.gone)
		o.gone = nil
	}
}

// run carries out orders until ctx is cancelled, and then gives up what it holds.
func (o *owner) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next, ok := o.carryOut(); ok {
			timer.Reset(max(0, next-o.now()))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			o.release()
			return nil
		case <-o.wake:
		case <-timer.C:
		case <-o.changed:
			o.audit = 0
		}
	}
}

// carryOut does what is due, and returns when to look again, if at all.
func (o *owner) carryOut() (next time.Duration, again bool) {
	o.mu.Lock()
	want, fresh := o.want, o.fresh
	o.fresh = false
	o.mu.Unlock()
	now := o.now()
	if !want {
		o.release()
		return now + auditInterval, o.held // held still: removing failed
	}
	if !o.leased() {
		// We were frozen between the order and here. The router finds out too,
		// and will say what is to be done.
		return 0, false
	}
	if fresh {
		o.schedule.restart(now)
		o.audit = 0
	}
	if now >= o.schedule.next || now >= o.audit {
		if !o.ensure(now) {
			return 0, false // the router has been told, and will order
		}
	}
	if o.schedule.due(o.now()) {
		o.announce()
	}
	return min(o.schedule.next, o.audit), true
}

// ensure puts on the interface what is missing there, and reports whether the
// addresses are ours.
func (o *owner) ensure(now time.Duration) bool {
	o.audit = now + auditInterval
	have, err := o.book.list()
	if err != nil {
		o.warn("failed to look at the addresses of the interface", err)
		if o.held {
			return true // nobody says that they are gone
		}
	}
	renew := now >= o.renewal
	if renew {
		o.renewal = now + auditInterval
	}
	for _, p := range o.addresses {
		if slices.Contains(have, p) {
			if renew {
				if err := o.book.add(p); err != nil {
					o.warn("failed to renew a virtual address", err)
				}
			}
			continue
		}
		if slices.ContainsFunc(have, func(q netip.Prefix) bool { return q.Addr() == p.Addr() }) {
			continue // somebody put it there otherwise; as good
		}
		if o.held {
			o.restored.Add(1)
			o.schedule.restart(now)
			o.log.Warn("a virtual address was removed by somebody else, adding it again", "address", p)
		}
		if err := o.book.add(p); err != nil {
			return o.fault(err)
		}
	}
	if !o.held {
		o.held = true
		o.schedule = schedule{}     // what was announced in an earlier turn holds nothing up
		o.schedule.restart(o.now()) // adding may have taken its time
	}
	return true
}

func (o *owner) fault(err error) bool {
	o.held = true // whatever part of the addresses is there must be removed
	select {
	case o.faults <- fmt.Sprintf("failed to own the addresses: %v", err):
	default: // one is on its way already
	}
	return false
}

func (o *owner) announce() {
	hardware, err := o.book.hardware()
	for i := 0; err == nil && i < len(o.addresses); i++ {
		if !o.leased() { // the last look before each address
			return
		}
		var sent int
		sent, err = o.herald.announce(hardware, o.addresses[i].Addr())
		o.announced.Add(uint64(sent))
	}
	if err != nil {
		// The next announcement is a moment away; the addresses are ours all
		// the same.
		o.failed.Add(1)
		o.warn(o.herald.name()+" failed", err)
	}
}

func (o *owner) warn(what string, err error) {
	if n, ok := o.mute.Allow(o.now()); ok {
		o.log.Warn(what, "error", err, "suppressed", n)
	}
}

func (o *owner) release() {
	defer o.settle()
	if !o.held {
		return
	}
	o.held = false
	o.schedule.stop()
	for _, p := range o.addresses {
		if _, err := o.book.remove(p.Addr()); err != nil {
			// Tried again soon; until then the fence is what keeps us silent.
			o.held = true
			o.log.Error("failed to give up a virtual address", "address", p, "error", err)
		}
	}
}

// settle tells who waits for it that the addresses are given up, if they are.
func (o *owner) settle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.held && !o.want {
		o.settleLocked()
	}
}
