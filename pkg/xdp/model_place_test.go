package xdp

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// place finds a flow its backend and port, as the program has chosen, and says
// what the verdict is.
func (m *model) place(verdict string, client int, excluded uint64, ticket uint32, got outcome) (string, uint64, error) {
	opened := got.action == xdpTX && got.at.port != 0
	if opened && m.Scheduler == lb.RandomTwo {
		// It notes whom it has tried: those that had no port before this one.
		for slot := range m.Backends {
			if slot == got.at.slot || (m.triedBy(ticket)&^excluded)>>slot&1 == 0 {
				continue
			}
			if err := m.hadNoPort(slot, got); err != nil {
				return "", 0, err
			}
			excluded |= 1 << slot
		}
	}
	failed := ""
	for range 3 {
		slot, why := m.pick(excluded, got, opened)
		if slot < 0 {
			failed = cmp.Or(failed, why)
			break
		}
		excluded |= 1 << slot
		c := &m.counts[slot]
		if m.rotor = slot + 1; opened && slot == got.at.slot {
			if m.taken[got.at] != nil {
				return "", 0, fmt.Errorf("port %d of backend %d was given twice", got.at.port, slot)
			}
			c.active++
			c.total++
			fl := &modelFlow{client: client, at: got.at, ticket: ticket, openedFrom: m.before, openedTo: m.after}
			m.flows[client], m.taken[got.at] = fl, fl
			return verdict, excluded, nil
		}
		if err := m.hadNoPort(slot, got); err != nil {
			return "", 0, err
		}
		failed = "tx_rst_no_port"
	}
	if opened {
		return "", 0, fmt.Errorf("went to backend %d, wanted %s", got.at.slot, failed)
	}
	return failed, excluded, nil
}

// hadNoPort is an error unless that is likely: 32 probes fail once in 10^12
// where two fifths are taken.
func (m *model) hadNoPort(slot int, got outcome) error {
	if used := m.used(slot); used*5 < m.ports*2 {
		return fmt.Errorf("not to backend %d, though only %d of its %d ports are taken, but to %+v", slot, used, m.ports, got.at)
	}
	return nil
}

func (m *model) used(slot int) (n int) {
	for at := range m.taken {
		if at.slot == slot {
			n++
		}
	}
	return n
}

func (m *model) takesFlows(slot int) bool {
	return !m.gone[slot] && m.Backends[slot].State == lb.Up
}

func (m *model) othersTakeFlows(tried uint64) bool {
	for slot := range m.Backends {
		if m.takesFlows(slot) && tried>>slot&1 == 0 {
			return true
		}
	}
	return false
}

// rank is what counts before the load: 8 full, 2 backup, 1 refused of late.
func (m *model) rank(slot int) (rank int) {
	b := m.Backends[slot]
	if b.MaxConnections != 0 && m.counts[slot].active >= int64(b.MaxConnections) {
		rank += 8
	}
	if b.Backup {
		rank += 2
	}
	if m.counts[slot].suspect {
		rank++
	}
	return rank
}

// pick is the slot that is next, or -1 and why there is none.
func (m *model) pick(excluded uint64, got outcome, opened bool) (int, string) {
	const none = 1 << 30
	best := none
	var candidates []int // of the best rank, in the order of the ring
	size := m.ringSize()
	for i := range size {
		slot := (m.rotor + i) % size
		if slot >= len(m.Backends) || !m.takesFlows(slot) || excluded>>slot&1 != 0 {
			continue
		}
		switch rank := m.rank(slot); {
		case rank < best:
			best, candidates = rank, []int{slot}
		case rank == best:
			candidates = append(candidates, slot)
		}
	}
	switch {
	case best == none:
		return -1, "tx_rst_no_backend"
	case best >= 8 && m.DropWhenFull:
		return -1, "drop_full"
	case best >= 8:
		return -1, "tx_rst_full"
	}
	switch m.Scheduler {
	case lb.RoundRobin:
		return m.pickTurn(candidates), ""
	case lb.RandomTwo:
		return m.pickRandom(candidates, got, opened)
	}
	choice := candidates[0]
	for _, slot := range candidates[1:] {
		if m.lighter(slot, choice) {
			choice = slot
		}
	}
	return choice, ""
}

// lighter compares (active + 1) / weight, as exactly as bpf/types.h says: of
// equal ones with different weights the cost may be rounded.
func (m *model) lighter(a, b int) bool {
	load := func(slot int) int64 {
		return (m.counts[slot].active + 1) * (costUnit / (int64(m.Backends[slot].Weight) * weightUnit))
	}
	return load(a) < load(b)
}

func (m *model) pickTurn(candidates []int) int {
	choice, earned := -1, int64(0)
	for slot := range m.Backends { // whoever comes first in the ring
		for _, c := range candidates {
			if c != slot {
				continue
			}
			weight := int64(m.Backends[slot].Weight) * weightUnit
			m.counts[slot].credit += weight
			earned += weight
			if choice < 0 || m.counts[slot].credit > m.counts[choice].credit {
				choice = slot
			}
		}
	}
	m.counts[choice].credit -= earned
	return choice
}

// pickRandom takes the program's word, unless it chose one that loses against
// each of the others.
func (m *model) pickRandom(candidates []int, got outcome, opened bool) (int, string) {
	chosen := candidates[0]
	for _, slot := range candidates { // no port: at those that have fewest, then
		if m.used(slot) > m.used(chosen) {
			chosen = slot
		}
	}
	m.inexact = m.inexact || !opened
	if !opened || !slices.Contains(candidates, got.at.slot) {
		return chosen, ""
	}
	loses := func(slot int) bool { return slot == got.at.slot || m.lighter(slot, got.at.slot) }
	if len(candidates) > 1 && !slices.ContainsFunc(candidates, func(slot int) bool { return !loses(slot) }) {
		return -1, "one with less load"
	}
	return got.at.slot, ""
}

// ringSize is the power of two that holds all slots.
func (m *model) ringSize() int {
	size := 1
	for slot := range m.Backends {
		for !m.gone[slot] && size <= slot {
			size *= 2
		}
	}
	return size
}
