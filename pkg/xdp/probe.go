package xdp

import (
	"net/netip"
	"time"
)

// probesPerSweep bounds how many flows are asked after at a time, so that a
// table of flows that fell idle together makes no burst.
const probesPerSweep = 2000

// prober asks the ends of idle flows whether they are there: each gets a
// keep-alive (RFC 9293, 3.8.4), an acknowledgement one number before what it
// expects next, and answers it at once by what it has. The answer goes through
// the program and makes the flow young again. If one end is silent, the other
// one is told.
type prober struct {
	asked  map[flowID]*question
	probed uint64
	dead   uint64
}

// flowID is a flow's forward addresses.
type flowID struct{ from, to netip.AddrPort }

type question struct {
	since uint32 // age units: whoever was seen from then on is alive
	sent  int
	next  time.Time
}

// isIdle says whether a flow that was silent for long has to be asked after:
// others end by themselves.
func isIdle(flags balancerFlowFlag) bool {
	const established = balancerFlowFlagFLOW_ESTABLISHED
	const ending = balancerFlowFlagFLOW_FIN_CLIENT | balancerFlowFlagFLOW_FIN_BACKEND |
		balancerFlowFlagFLOW_RESET | balancerFlowFlagFLOW_CLOSED
	return flags&(established|ending) == established
}

// note takes a flow that was found idle.
func (p *prober) note(h *half) {
	id := flowID{h.from, h.to}
	if p.asked[id] != nil || len(p.asked) >= probesPerSweep {
		return
	}
	if p.asked == nil {
		p.asked = make(map[flowID]*question)
	}
	p.asked[id] = new(question)
}

// probe asks those that are due and gives up those that were asked often
// enough.
func (b *Balancer) probe(clock clock) error {
	now := time.Now()
	for id, q := range b.probes.asked {
		f, err := b.tables.of(id.from.Addr())
		if err != nil {
			return err
		}
		forward, ok := f.forward(id.from, id.to)
		if !ok || !isIdle(forward.flags) {
			delete(b.probes.asked, id)
			continue
		}
		reverse, ok := f.reverse(&forward)
		if !ok {
			delete(b.probes.asked, id)
			continue
		}
		// Another node has the address: it is the one that knows.
		if until, err := f.lease(forward.vip); err != nil || until <= clock.jiffies {
			delete(b.probes.asked, id)
			if err != nil {
				return err
			}
			continue
		}
		silentClient, silentBackend := true, true
		if q.sent > 0 {
			silentClient = int32(forward.seen-q.since) < 0
			silentBackend = int32(reverse.seen-q.since) < 0
		}
		switch {
		case !silentClient && !silentBackend:
			delete(b.probes.asked, id)
			continue
		case now.Before(q.next):
			continue
		case q.sent >= b.cfg.ProbeCount:
			delete(b.probes.asked, id)
			b.probes.dead++
			b.log.Info("gave up an idle connection", "client", id.from, "backend", forward.newTo,
				"client_answers", !silentClient, "backend_answers", !silentBackend)
			if _, err := b.resetAll(f, []half{forward}); err != nil {
				return err
			}
			continue
		}
		if q.sent == 0 {
			q.since = uint32(clock.now() >> ageShift)
			b.probes.probed++
		}
		q.sent++
		q.next = now.Add(b.cfg.ProbeInterval)
		b.ask(&forward, &reverse, silentClient, silentBackend)
	}
	return nil
}

// ask sends the keep-alives. One that could not be sent counts as unanswered,
// like one that was lost on the wire.
func (b *Balancer) ask(forward, reverse *half, client, backend bool) {
	if client {
		b.resets.note(b.resets.raw.send(forward.to, forward.from, forward.ack-1, reverse.ack, tcpACK))
	}
	if backend {
		b.resets.note(b.resets.raw.send(forward.newFrom, forward.newTo, reverse.ack-1, forward.ack, tcpACK))
	}
}
