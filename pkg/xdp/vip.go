package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// vipStates are the values of struct vip's state, which only tools read.
var vipStates = []string{"init", "backup", "active"}

// SetVIPs says which addresses the program cares for. One that is new is
// fenced until its first lease; one that stays keeps its lease.
func (b *Balancer) SetVIPs(vips []lb.VIPStats) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := make(map[uint32]bool)
	for _, v := range vips {
		if !v.Addr.Is4() {
			return fmt.Errorf("virtual address %s is not IPv4", v.Addr)
		}
		err := b.changeVIP(v.Addr, true, func(row *balancerVip) {
			row.Vrid, row.Priority, row.Router = v.VRID, v.Priority, nameBytes(v.Router)
		})
		if err != nil {
			return err
		}
		keep[be32(v.Addr)] = true
	}
	var key uint32
	var row balancerVip
	var stale []uint32
	it := b.objs.Vips.Iterate()
	for it.Next(&key, &row) {
		if !keep[key] {
			stale = append(stale, key)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("listing virtual addresses: %w", err)
	}
	for _, key := range stale {
		if err := b.objs.Vips.Delete(key); err != nil {
			return fmt.Errorf("removing virtual address %s: %w", addrOf(key), err)
		}
	}
	return nil
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
		return b.changeVIP(addr, false, func(row *balancerVip) {
			if row.State != uint8(number) {
				row.Since = monotonic()
			}
			row.State, row.Priority = uint8(number), priority
		})
	}
	return fmt.Errorf("unknown state %q of a virtual router", state)
}

// RenewLease lets the program answer for the address for d from now.
func (b *Balancer) RenewLease(addr netip.Addr, d time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changeVIP(addr, false, func(row *balancerVip) {
		row.LeaseUntil = monotonic() + uint64(d)
	})
}

// RevokeLease silences the program about the address at once.
func (b *Balancer) RevokeLease(addr netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changeVIP(addr, false, func(row *balancerVip) {
		row.LeaseUntil = 0
	})
}

// changeVIP rewrites a row as a whole; readers see the old one or the new one.
// The caller holds mu.
func (b *Balancer) changeVIP(addr netip.Addr, create bool, change func(*balancerVip)) error {
	key := be32(addr)
	var row balancerVip
	err := b.objs.Vips.Lookup(key, &row)
	if errors.Is(err, ebpf.ErrKeyNotExist) && create {
		row.Since, err = monotonic(), nil
	}
	if err != nil {
		return fmt.Errorf("looking up virtual address %s: %w", addr, err)
	}
	change(&row)
	if err := b.objs.Vips.Put(key, row); err != nil {
		return fmt.Errorf("storing virtual address %s: %w", addr, err)
	}
	return nil
}
