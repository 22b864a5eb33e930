package xdp

import (
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// model is what the datapath should do, written down a second time and plainly:
// maps instead of tables, one thing at a time. It is told of each segment and
// of what became of it, and says what is wrong with that.
//
// Left to the program are the SNAT port and the draw of random2: the model
// checks that they are allowed, and takes them over.
type model struct {
	cast
	lb.Service            // as configured; a backend's index is its slot
	gone          []bool  // by slot: not configured now
	ports         int     // SNAT ports of a backend
	ring          []place // half-open flows, by the low bits of their tickets
	ticket        uint32  // the last one given out
	flows         map[int]*modelFlow
	taken         map[tuple]*modelFlow // by the backend's side
	counts        []modelCounts        // by slot
	rotor         int
	verdicts      map[string]uint64
	before, after time.Time // of the segment at hand
	// triedBy reads which backends had a half-open flow, where the program
	// draws them.
	triedBy func(ticket uint32) uint64
	inexact bool // whom it tried last is not known: read the rotor anew
	pin     bool // somebody refused: for how long it is passed over is up to the test
}

type place struct {
	ticket uint32
	client int
	isn    uint32
	tried  uint64
}

// tuple is where a flow leaves for.
type tuple struct {
	slot int
	port uint16
}

type modelCounts struct {
	active, credit                             int64
	total, refused, redispatched, resets, gone uint64
	suspect                                    bool // it refused
}

// modelFlow is a flow of the client with the number.
type modelFlow struct {
	client                  int
	at                      tuple
	accepted, established   bool
	finClient, finBackend   bool
	timeWait, reset, closed bool
	ticket                  uint32    // or, after finClient, what acknowledges that
	ackClient, ackBackend   uint32    // the newest; 0: none
	openedFrom, openedTo    time.Time // it was between these
}

func (m *modelFlow) state() string {
	switch {
	case m == nil:
		return ""
	case m.reset:
		return "reset"
	case m.closed && m.timeWait:
		return "time_wait"
	case m.closed:
		return "closed"
	case m.finClient:
		return "fin_client"
	case m.finBackend:
		return "fin_backend"
	case m.established:
		return "established"
	case m.accepted:
		return "syn_received"
	}
	return "syn_sent"
}

func newModel(c cast, s lb.Service, ring, ports int) *model {
	return &model{
		cast: c, Service: s, ports: ports, ring: make([]place, ring), gone: make([]bool, len(s.Backends)),
		flows: make(map[int]*modelFlow), taken: make(map[tuple]*modelFlow),
		counts: make([]modelCounts, len(s.Backends)), verdicts: make(map[string]uint64),
	}
}

// outcome is what the program made of a packet: at is where it went to, if that
// was a backend.
type outcome struct {
	action uint32
	out    segment
	at     tuple
}

func (m *model) close(fl *modelFlow) bool {
	if fl.closed {
		return false
	}
	fl.closed = true
	m.counts[fl.at.slot].active--
	return true
}

func (m *model) doReset(fl *modelFlow) {
	fl.reset = true
	if m.close(fl) {
		m.counts[fl.at.slot].resets++
	}
}

func (m *model) remove(fl *modelFlow) {
	m.close(fl)
	if p := m.halfOpen(fl); p != nil {
		p.ticket = 0
	}
	delete(m.flows, fl.client)
	delete(m.taken, fl.at)
}

// halfOpen is a flow's place in the ring, as long as it has one.
func (m *model) halfOpen(fl *modelFlow) *place {
	p := &m.ring[int(fl.ticket)%len(m.ring)]
	if p.ticket != fl.ticket || fl.established || fl.finClient {
		return nil
	}
	return p
}

const modelWindow = 8 << 20 // of sequence numbers, for a reset

func resetCounts(seq, acknowledged uint32) bool {
	return acknowledged == 0 || seq-acknowledged <= modelWindow
}

func acknowledge(have *uint32, s segment) {
	if s.flags&ack != 0 && (*have == 0 || int32(s.ack-*have) > 0) {
		*have = s.ack
	}
}

// fromClient takes a segment of the client's and what became of it.
func (m *model) fromClient(client int, s segment, got outcome) error {
	fl := m.flows[client]
	pure := s.flags&(syn|ack|fin|rst) == syn
	switch {
	case fl == nil && pure:
		return m.open(client, s, got)
	case fl == nil && s.flags&rst != 0:
		return m.dropped("drop_stray_rst", got)
	case fl == nil:
		return m.answered("tx_rst_client", s, got)
	case pure:
		return m.synOnFlow(fl, s, got)
	}
	return m.forwarded(fl, s, got)
}

func (m *model) forwarded(fl *modelFlow, s segment, got outcome) error {
	acknowledge(&fl.ackClient, s)
	if s.flags&rst != 0 {
		if resetCounts(s.seq, fl.ackBackend) {
			m.doReset(fl)
		}
		return m.sent("tx_forward", fl, s, got)
	}
	if s.flags&ack != 0 && fl.accepted {
		if p := m.halfOpen(fl); p != nil {
			p.ticket = 0 // it is given back
		}
		fl.established = true
	}
	if s.flags&fin != 0 {
		if !fl.finClient {
			fl.ticket = s.seq + uint32(len(s.payload)) + 1
		}
		fl.finClient = true
		if fl.finBackend {
			m.close(fl)
		}
	}
	return m.sent("tx_forward", fl, s, got)
}

func (m *model) synOnFlow(fl *modelFlow, s segment, got outcome) error {
	p := m.halfOpen(fl)
	if !fl.closed && p != nil && p.isn == s.seq {
		const silence = 500 * time.Millisecond
		moved := m.before.Sub(fl.openedTo) > silence ||
			m.after.Sub(fl.openedFrom) > silence && !(got.action == xdpTX && got.at == fl.at)
		if !fl.accepted && moved && m.othersTakeFlows(p.tried) {
			return m.reopen("tx_redispatch_silent", fl, p, s, got)
		}
		return m.sent("tx_forward", fl, s, got)
	}
	if (fl.established || fl.finClient) && !fl.closed {
		return m.forwarded(fl, s, got)
	}
	m.remove(fl)
	return m.open(fl.client, s, got)
}

// fromBackend takes a segment from a backend to one of our ports.
func (m *model) fromBackend(at tuple, s segment, got outcome) error {
	fl := m.taken[at]
	if fl == nil {
		switch {
		case m.gone[at.slot]:
			return m.passed("pass_port", got)
		case s.flags&rst != 0:
			return m.dropped("drop_stray_rst", got)
		}
		return m.answered("tx_rst_backend", s, got)
	}
	acknowledge(&fl.ackBackend, s)
	acked := s.ack
	if s.flags&ack == 0 {
		acked = 0
	}
	switch {
	case s.flags&rst != 0:
		p := m.halfOpen(fl)
		refused := !fl.accepted && !fl.closed && p != nil && s.flags&ack != 0 && s.ack == p.isn+1
		if refused {
			m.counts[at.slot].refused++
			m.counts[at.slot].suspect, m.pin = true, true
			if m.othersTakeFlows(p.tried) {
				return m.reopen("tx_redispatch_refused", fl, p, s, got)
			}
		}
		if resetCounts(s.seq, fl.ackClient) {
			m.doReset(fl)
		}
	case s.flags&syn != 0:
		fl.accepted = true
	case s.flags&fin != 0 && !fl.finBackend:
		fl.finBackend = true
		if !fl.finClient || int32(acked-fl.ticket) < 0 {
			fl.timeWait = true
		}
		if fl.finClient {
			m.close(fl)
		}
	}
	return m.delivered(fl, s, got)
}

// open takes a SYN that no flow has.
func (m *model) open(client int, s segment, got outcome) error {
	m.ticket++
	p := &m.ring[int(m.ticket)%len(m.ring)]
	if old := m.flows[p.client]; old != nil && p.ticket != 0 && m.halfOpen(old) == p && !old.closed {
		m.counts[old.at.slot].gone++
		m.remove(old)
	}
	*p = place{ticket: m.ticket, client: client, isn: s.seq}
	verdict, tried, err := m.place("tx_new", client, 0, m.ticket, got)
	if err != nil {
		return err
	}
	if verdict != "tx_new" {
		p.ticket = 0
		return m.refused(verdict, s, got)
	}
	p.tried = tried
	return m.sent("tx_new", m.flows[client], s, got)
}

// reopen moves a flow to another backend.
func (m *model) reopen(verdict string, fl *modelFlow, p *place, s segment, got outcome) error {
	m.counts[fl.at.slot].redispatched++
	m.remove(fl)
	verdict, tried, err := m.place(verdict, fl.client, p.tried, fl.ticket, got)
	if err != nil {
		return err
	}
	switch {
	case verdict == "tx_redispatch_silent":
		p.ticket, p.tried = fl.ticket, tried
		return m.sent(verdict, m.flows[fl.client], s, got)
	case verdict == "tx_redispatch_refused":
		p.ticket, p.tried = fl.ticket, tried
		want := segment{flags: syn, seq: p.isn, tags: s.tags, label: got.out.label, options: got.out.options, tos: got.out.tos}
		return m.sent(verdict, m.flows[fl.client], want, got)
	case s.flags&rst != 0: // the reset of a backend: the client sends again
		return m.dropped("drop_race", got)
	}
	return m.refused(verdict, s, got)
}

func (m *model) refused(verdict string, s segment, got outcome) error {
	if verdict == "drop_full" {
		return m.dropped(verdict, got)
	}
	return m.answered(verdict, s, got)
}

// sent wants the segment to have gone to the flow's backend.
func (m *model) sent(verdict string, fl *modelFlow, s segment, got outcome) error {
	m.verdicts[verdict]++
	if got.action != xdpTX || got.at != fl.at {
		return fmt.Errorf("%s: action %d, to %+v, the flow has %+v", verdict, got.action, got.at, fl.at)
	}
	if o := got.out; o.dstMAC != poolerMAC || o.src.Addr() != m.vip.Addr() {
		return fmt.Errorf("%s: it left as %+v", verdict, o)
	}
	return sameSegment(verdict, s, got.out)
}

// delivered wants the segment to have gone to the flow's client.
func (m *model) delivered(fl *modelFlow, s segment, got outcome) error {
	m.verdicts["tx_reverse"]++
	if o := got.out; got.action != xdpTX || o.dst != m.number(fl.client) || o.src != m.vip || o.dstMAC != clientMAC {
		return fmt.Errorf("action %d, from %s to %s, it is the flow of %s", got.action, o.src, o.dst, m.number(fl.client))
	}
	return sameSegment("tx_reverse", s, got.out)
}

func sameSegment(verdict string, in, out segment) error {
	if out.flags != in.flags || out.seq != in.seq || out.payload != in.payload || in.flags&ack != 0 && out.ack != in.ack {
		return fmt.Errorf("%s: %+v has become %+v", verdict, in, out)
	}
	return nil
}

// answered wants a reset back to the sender.
func (m *model) answered(verdict string, s segment, got outcome) error {
	m.verdicts[verdict]++
	o := got.out
	if got.action != xdpTX || o.src != s.dst || o.dst != s.src || o.flags&rst == 0 || s.flags&ack != 0 && o.seq != s.ack {
		return fmt.Errorf("%s: action %d, from %s to %s, flags %#x", verdict, got.action, o.src, o.dst, o.flags)
	}
	return nil
}

func (m *model) dropped(verdict string, got outcome) error {
	m.verdicts[verdict]++
	if got.action != xdpDrop {
		return fmt.Errorf("%s: action %d", verdict, got.action)
	}
	return nil
}

func (m *model) passed(verdict string, got outcome) error {
	m.verdicts[verdict]++
	if got.action != xdpPass {
		return fmt.Errorf("%s: action %d", verdict, got.action)
	}
	return nil
}

// sweep removes the flows in a state, all of them.
func (m *model) sweep(states ...string) {
	for _, fl := range m.flows {
		for _, s := range states {
			if fl.state() == s {
				m.remove(fl)
			}
		}
	}
}

// sweepFIN removes those that one side has closed, sweepHalfOpen those that
// were never established. Which of the two a flow is, is asked in this order.
func (m *model) sweepFIN() {
	for _, fl := range m.flows {
		if fl.established && !fl.closed && (fl.finClient || fl.finBackend) {
			m.remove(fl)
		}
	}
}

func (m *model) sweepHalfOpen() {
	for _, fl := range m.flows {
		if !fl.established && !fl.closed {
			m.remove(fl)
		}
	}
}

// free takes a backend out, with its flows and counts.
func (m *model) free(slot int) {
	for _, fl := range m.flows {
		if fl.at.slot == slot {
			m.remove(fl)
		}
	}
	m.counts[slot] = modelCounts{}
	m.gone[slot] = true
}

// tupleOf is where a segment that left went to.
func (m *model) tupleOf(s segment) tuple {
	if slot := m.slot(s.dst); slot >= 0 && slot < len(m.Backends) && s.src.Addr() == m.vip.Addr() && s.src != m.vip {
		return tuple{slot, s.src.Port()}
	}
	return tuple{}
}
