package xdp

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Units of bpf/types.h.
const (
	weightUnit = 256
	costUnit   = 1 << 44
	// slowest is the share of its weight with which a backend's slow start
	// begins: costs are exact in 56 bits down to that.
	slowest = 1.0 / 16
)

// slowStartStep is how often the weights of those in slow start are raised.
const slowStartStep = 200 * time.Millisecond

func (s *slotRow) flag(f balancerSlotFlag) bool { return balancerSlotFlag(s.Flags)&f != 0 }

func (s *slotRow) setFlag(f balancerSlotFlag, on bool) {
	s.Flags &^= uint8(f)
	if on {
		s.Flags |= uint8(f)
	}
}

// setWeight sets a share of a weight.
func (s *slotRow) setWeight(weight uint16, share float64) {
	s.Nominal = weight
	s.Weight = uint32(math.Round(float64(weight) * weightUnit * share))
	s.Cost = costUnit / uint64(s.Weight)
}

// limitless is the limit of a backend that has none.
const limitless = math.MaxUint32

// configure is everything but whether the next hop is known.
func (s *slotRow) configure(b lb.Backend, share float64) {
	s.State = uint8(b.State)
	s.setWeight(max(b.Weight, 1), share)
	s.setFlag(balancerSlotFlagSLOT_BACKUP, b.Backup)
	if s.Limit = b.MaxConnections; s.Limit == 0 {
		s.Limit = limitless
	}
}

// describe is the other way round.
func (s *slotRow) describe(b *lb.BackendStats) {
	b.State = lb.State(s.State)
	b.Weight = s.Nominal
	b.Backup = s.flag(balancerSlotFlagSLOT_BACKUP)
	b.Reachable = s.flag(balancerSlotFlagSLOT_REACHABLE)
	if b.Limit = s.Limit; b.Limit == limitless {
		b.Limit = 0
	}
}

// changeSlot rewrites one slot of a schedule. Only Go writes schedules, and
// the caller holds mu.
func (b *Balancer) changeSlot(id, slot uint32, change func(*slotRow)) error {
	var row scheduleRow
	if err := b.tables.schedules.Lookup(id, &row); err != nil {
		return fmt.Errorf("reading the schedule: %w", err)
	}
	old := row.Slots[slot]
	if change(&row.Slots[slot]); row.Slots[slot] == old {
		return nil
	}
	if err := b.tables.schedules.Put(id, row); err != nil {
		return fmt.Errorf("writing the schedule: %w", err)
	}
	return nil
}

// share is how much of its weight a backend has at a time.
func (p *placedBackend) share(now time.Time) float64 {
	left := p.slowUntil.Sub(now)
	if left <= 0 || p.slowStart <= 0 {
		return 1
	}
	return max(1-float64(left)/float64(p.slowStart), slowest)
}

// slowStartLoop raises the weights of backends that came up a while ago.
func (b *Balancer) slowStartLoop(ctx context.Context) error {
	tick := time.NewTicker(slowStartStep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if err := b.raiseWeights(now); err != nil {
				return err
			}
		}
	}
}

func (b *Balancer) raiseWeights(now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.placed {
		p := &b.placed[i]
		if p.slowUntil.IsZero() {
			continue
		}
		share := p.share(now)
		if err := b.changeSlot(p.id, p.slot, func(s *slotRow) { s.setWeight(p.weight, share) }); err != nil {
			return err
		}
		if share == 1 {
			p.slowUntil = time.Time{}
		}
	}
	return nil
}
