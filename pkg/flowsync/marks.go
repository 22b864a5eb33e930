package flowsync

import (
	"iter"
	"net/netip"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// marks is what the receiver remembers of flows during a pass. There may be a
// million of them, so they are kept small and without pointers.
type marks struct {
	full  bool          // some could not be remembered
	flows map[mark]bool // true: it changed; false: it is from before the pass, and not seen in it
	pairs []pair
	place map[pair]uint32
}

// maxMarks bounds the memory: 4 million take some 300 MB. There are so many only
// if flows come and go much faster than a pass gets on.
const maxMarks = 4 << 20

// mark is a flow's identity.
type mark struct {
	client, snat         [16]byte
	clientPort, snatPort uint16
	pair                 uint32 // place in marks.pairs
}

func (m *marks) reset() { *m = marks{} }

// of returns the flow's mark.
func (m *marks) of(id lb.FlowID) mark {
	if m.flows == nil {
		m.flows, m.place = make(map[mark]bool), make(map[pair]uint32)
	}
	p := pair{id.Service, id.Backend}
	place, ok := m.place[p]
	if !ok {
		place = uint32(len(m.pairs))
		m.pairs = append(m.pairs, p)
		m.place[p] = place
	}
	return mark{id.Client.Addr().As16(), id.SNAT.Addr().As16(), id.Client.Port(), id.SNAT.Port(), place}
}

// old marks a flow that was there before the pass.
func (m *marks) old(id lb.FlowID) { m.set(id, false) }

// changed marks a flow that has changed during the pass.
func (m *marks) changed(id lb.FlowID) { m.set(id, true) }

func (m *marks) set(id lb.FlowID, changed bool) {
	k := m.of(id)
	if m.full = m.full || len(m.flows) >= maxMarks; !m.full {
		m.flows[k] = changed
	}
}

// copied takes note of a flow that the pass has a record of, and reports
// whether that record is still news, as far as is known.
func (m *marks) copied(id lb.FlowID) bool {
	if m.full {
		return false
	}
	k := m.of(id)
	changed, ok := m.flows[k]
	if ok && !changed {
		delete(m.flows, k)
	}
	return !changed
}

// unseen returns the flows that the pass has said nothing of.
func (m *marks) unseen() iter.Seq[lb.FlowID] {
	return func(yield func(lb.FlowID) bool) {
		for k, changed := range m.flows {
			if !changed && !yield(m.id(k)) {
				return
			}
		}
	}
}

// id is the inverse of of.
func (m *marks) id(k mark) lb.FlowID {
	p := m.pairs[k.pair]
	client, snat := netip.AddrFrom16(k.client), netip.AddrFrom16(k.snat)
	if p.service.Addr().Is4() {
		client, snat = client.Unmap(), snat.Unmap()
	}
	return lb.FlowID{
		Client: netip.AddrPortFrom(client, k.clientPort), Service: p.service,
		SNAT: netip.AddrPortFrom(snat, k.snatPort), Backend: p.backend,
	}
}
