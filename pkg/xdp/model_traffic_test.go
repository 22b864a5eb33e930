package xdp

import (
	"net/netip"
)

// natural goes on with a client's connection as its two ends would.
func (r *modelRun) natural(n int) {
	fl := r.m.flows[n]
	choose := func(of ...string) string { return of[r.rng.IntN(len(of))] }
	switch fl.state() {
	case "":
		r.open(n)
	case "syn_sent":
		switch choose("accept", "accept", "accept", "refuse", "again", "silence") {
		case "accept":
			r.backendSends(n, syn|ack, "")
		case "refuse":
			p := r.m.halfOpen(fl)
			r.sendBackend(n, segment{flags: rst | ack, ack: p.isn + 1}, "refuse")
		case "silence":
			r.age(fl)
			r.again(n)
		case "again":
			r.again(n)
		}
	case "syn_received":
		if choose("ack", "ack", "ack", "again") == "again" {
			r.age(fl) // that is no silence
			r.again(n)
			return
		}
		r.clientSends(n, ack, "")
	case "established", "fin_client", "fin_backend":
		switch choose("client", "backend", "client", "backend", "client", "backend", "fin client", "fin backend", "reset") {
		case "client":
			r.clientSends(n, ack|psh, "select 1"[:1+r.rng.IntN(8)])
		case "backend":
			r.backendSends(n, ack|psh, "1 row"[:1+r.rng.IntN(5)])
		case "fin client":
			r.clientSends(n, fin|ack, "")
		case "fin backend":
			r.backendSends(n, fin|ack, "")
		case "reset":
			if r.rng.IntN(2) == 0 {
				r.clientSends(n, rst, "")
			} else {
				r.backendSends(n, rst|ack, "")
			}
		}
	default: // over
		if r.rng.IntN(3) == 0 {
			r.open(n)
		} else if r.rng.IntN(2) == 0 {
			r.clientSends(n, ack, "")
		} else {
			r.backendSends(n, ack, "")
		}
	}
}

func (r *modelRun) open(n int) {
	r.ends[n] = ends{r.rng.Uint32(), r.rng.Uint32()}
	r.clientSends(n, syn, "")
}

// again is the SYN of a half-open flow.
func (r *modelRun) again(n int) {
	p := r.m.halfOpen(r.m.flows[n])
	r.sendClient(n, segment{flags: syn, seq: p.isn}, "SYN again")
}

func (r *modelRun) clientSends(n int, flags uint8, payload string) {
	e := &r.ends[n]
	s := segment{flags: flags, seq: e.client, ack: e.backend, payload: payload}
	e.client += uint32(len(payload)) + uint32(flags&fin) + uint32(flags&syn>>1)
	r.sendClient(n, s, "client")
}

func (r *modelRun) backendSends(n int, flags uint8, payload string) {
	e := &r.ends[n]
	s := segment{flags: flags, seq: e.backend, ack: e.client, payload: payload}
	e.backend += uint32(len(payload)) + uint32(flags&fin) + uint32(flags&syn>>1)
	r.sendBackend(n, s, "backend")
}

// wild is any segment at all, from either side, with numbers that may be wrong.
func (r *modelRun) wild(n int) {
	e := r.ends[n]
	off := func() uint32 {
		switch r.rng.IntN(8) {
		case 0:
			return uint32(r.rng.IntN(3) - 1)
		case 1:
			return modelWindow + uint32(r.rng.IntN(3)-1)
		case 2:
			return r.rng.Uint32()
		}
		return 0
	}
	flags := []uint8{ack, ack | psh, fin | ack, fin, rst, rst | ack, syn, syn | ack, syn | fin, 0}[r.rng.IntN(10)]
	payload := "wild"[:r.rng.IntN(5)]
	if flags&syn != 0 {
		payload = ""
	}
	if r.rng.IntN(2) == 0 {
		r.sendClient(n, segment{flags: flags, seq: e.client + off(), ack: e.backend + off(), payload: payload}, "wild")
		return
	}
	s := segment{flags: flags, seq: e.backend + off(), ack: e.client + off(), payload: payload}
	if r.rng.IntN(4) > 0 && r.m.flows[n] != nil {
		r.sendBackend(n, s, "wild")
		return
	}
	at := tuple{r.rng.IntN(len(r.m.Backends)), uint16(20000 + r.rng.IntN(modelPorts))}
	r.send(event{backend: at, segment: r.fromTuple(at, s)}, "stray")
}

func (r *modelRun) sendClient(n int, s segment, what string) {
	s.srcMAC, s.dstMAC, s.src, s.dst = clientMAC, lbMAC, r.m.number(n), r.m.vip
	r.send(event{client: n, segment: s}, what)
}

func (r *modelRun) sendBackend(n int, s segment, what string) {
	at := r.m.flows[n].at
	r.send(event{client: n, backend: at, segment: r.fromTuple(at, s)}, what)
}

func (r *modelRun) fromTuple(at tuple, s segment) segment {
	s.srcMAC, s.dstMAC, s.src = poolerMAC, lbMAC, r.m.Backends[at.slot].Addr
	s.dst = netip.AddrPortFrom(r.m.vip.Addr(), at.port)
	return s
}
