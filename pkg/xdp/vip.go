package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// vipStates are the values of struct vip's state, which only tools read.
var vipStates = []string{"init", "backup", "active"}

// maxVIPs is MAX_VIPS of bpf/config.h.
const maxVIPs = 256

// ErrUnknownVIP is returned for an address that SetVIPs was not given.
var ErrUnknownVIP = errors.New("unknown virtual address")

// SetVIPs says which addresses the program cares for. One that is new is
// fenced until its first lease; one that stays keeps its lease.
func (b *Balancer) SetVIPs(vips []lb.VIPStats) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := make(map[netip.Addr]bool)
	for _, v := range vips {
		f, err := b.tables.of(v.Addr)
		if err != nil {
			return err
		}
		if err := addVIP(f, v); err != nil {
			return err
		}
		keep[v.Addr] = true
	}
	for _, f := range b.tables.families() {
		if err := f.setHints(); err != nil {
			return err
		}
		if err := removeVIPs(f, keep); err != nil {
			return err
		}
		if err := f.setHints(); err != nil {
			return err
		}
	}
	return nil
}

func addVIP(f familyTables, v lb.VIPStats) error {
	all, err := f.vips()
	if err != nil {
		return err
	}
	row, known := all[v.Addr]
	if !known {
		if row.Index, err = freeVIP(all); err != nil {
			return err
		}
		row.SinceNs = monotonic()
		if err := f.setLease(row.Index, 0); err != nil {
			return err
		}
	}
	row.VRID, row.Priority, row.Router = v.VRID, v.Priority, nameBytes(v.Router)
	return f.putVIP(v.Addr, row)
}

func freeVIP(have map[netip.Addr]vipRow) (uint32, error) {
	var used [maxVIPs]bool
	for _, row := range have {
		used[row.Index] = true
	}
	for i, u := range used {
		if !u {
			return uint32(i), nil
		}
	}
	return 0, fmt.Errorf("more than %d virtual addresses", maxVIPs)
}

// removeVIPs drops the addresses that are not to be kept.
func removeVIPs(f familyTables, keep map[netip.Addr]bool) error {
	all, err := f.vips()
	if err != nil {
		return err
	}
	for addr, row := range all {
		if keep[addr] {
			continue
		}
		if err := errors.Join(f.setLease(row.Index, 0), f.deleteVIP(addr)); err != nil {
			return err
		}
	}
	return nil
}

func lastByte(addr netip.Addr) byte {
	b := addr.AsSlice()
	return b[len(b)-1]
}

// SetVIPState records the virtual router's state, "init", "backup" or
// "active", for the tools. It gives no right to answer: that is the lease.
func (b *Balancer) SetVIPState(addr netip.Addr, state string, priority uint8) error {
	for number, name := range vipStates {
		if name != state {
			continue
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		f, row, err := b.vip(addr)
		if err != nil {
			return err
		}
		if row.State != uint8(number) {
			row.SinceNs = monotonic()
		}
		row.State, row.Priority = uint8(number), priority
		return f.putVIP(addr, row)
	}
	return fmt.Errorf("unknown state %q of a virtual router", state)
}

// RenewLease lets the program answer for the address for d from now, in whole
// jiffies, at most one less.
func (b *Balancer) RenewLease(addr netip.Addr, d time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, row, err := b.vip(addr)
	if err != nil {
		return err
	}
	clock, err := b.tables.clock()
	if err != nil {
		return err
	}
	until, err := f.lease(row.Index)
	if err != nil {
		return err
	}
	if until <= clock.jiffies {
		b.took[addr] = clock.before(0)
	}
	return f.setLease(row.Index, clock.after(d))
}

// RevokeLease silences the program about the address at once.
func (b *Balancer) RevokeLease(addr netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, row, err := b.vip(addr)
	if err != nil {
		return err
	}
	return f.setLease(row.Index, 0)
}

// vip looks an address up. The caller holds mu.
func (b *Balancer) vip(addr netip.Addr) (familyTables, vipRow, error) {
	f, err := b.tables.of(addr)
	if err != nil {
		return nil, vipRow{}, err
	}
	all, err := f.vips()
	if err != nil {
		return nil, vipRow{}, err
	}
	row, ok := all[addr]
	if !ok {
		return nil, vipRow{}, fmt.Errorf("%w: %s", ErrUnknownVIP, addr)
	}
	return f, row, nil
}
