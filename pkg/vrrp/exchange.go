package vrrp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// advertise sends one advertisement to every peer, or to the group.
func (r *Router) advertise(what action) []event {
	priority, began := what.priority, r.now()
	if priority != priorityResign && r.machine.expired(began) {
		// Frozen since the machine decided: let it see that first.
		return []event{{kind: evTimer}}
	}
	c := &r.config
	a := Advertisement{VRID: c.VRID, Priority: priority, Interval: cmp.Or(what.interval, c.AdvertInterval)}
	for _, p := range c.Addresses {
		a.Addresses = append(a.Addresses, p.Addr())
	}
	targets := c.Peers
	if len(targets) == 0 {
		targets = []netip.Addr{groupOf(c.Source)}
	}
	encode := r.encoder(&a)
	var errs []error
	for _, dst := range targets {
		if err := r.net.send(encode(dst), dst); err != nil {
			errs = append(errs, err)
		}
	}
	r.mu.Lock()
	r.state.Sent += uint64(len(targets) - len(errs))
	r.state.SendErrors += uint64(len(errs))
	if priority == priorityResign {
		r.state.SentResign++
	}
	r.mu.Unlock()
	if len(errs) > 0 {
		if n, ok := r.muteSend.Allow(began); ok {
			r.log.Warn("failed to send an advertisement", "error", errors.Join(errs...), "suppressed", n)
		}
	}
	if priority == priorityResign {
		return nil
	}
	// One peer out of reach (no route, a filter) must not stop us from serving
	// with the others; none reached means that we are the one cut off.
	return []event{{kind: evSent, began: began, ok: len(errs) < len(targets)}}
}

// encoder returns what encodes one advertisement for each of its receivers. Its
// copies have one sequence: they are one advertisement.
func (r *Router) encoder(a *Advertisement) func(dst netip.Addr) []byte {
	c, hmac := &r.config, r.filter.hmac
	sequence := uint64(0)
	if hmac.sends() {
		sequence = hmac.next()
	}
	return func(dst netip.Addr) []byte {
		var b []byte
		if c.Version == version2 {
			b = a.Append2(nil, c.Auth)
		} else {
			b = a.Append(nil, r.form(dst), c.Source, dst)
		}
		if !hmac.sends() {
			return b
		}
		b = hmac.sign(b, sequence, c.Source)
		if c.ipv6() {
			seal(b, ChecksumPseudo, c.Source, dst) // covers the trailer too
		}
		return b
	}
}

// form returns the form of checksum to send in. A group has the one of whoever
// was heard last.
func (r *Router) form(dst netip.Addr) ChecksumForm {
	if fixed := r.config.checksum(); fixed != ChecksumAuto {
		return fixed
	}
	if f, ok := r.forms[dst]; ok {
		return f
	}
	return ChecksumMessage
}

// learnForm remembers the form that a peer sends in. Only configured peers and
// the group have a place.
func (r *Router) learnForm(from netip.Addr, form ChecksumForm) {
	if len(r.config.Peers) == 0 {
		from = groupOf(r.config.Source)
	}
	r.forms[from] = form
}

// receive handles everything that has arrived.
func (r *Router) receive() error {
	packets, dropped, err := r.net.take()
	if err != nil {
		return fmt.Errorf("receiving advertisements: %w", err)
	}
	if dropped > 0 {
		r.refuse(RefusedOverflow, datagram{}, dropped)
	}
	for _, packet := range packets {
		a, d, form, err := r.filter.accept(packet)
		var reason Refusal
		if errors.As(err, &reason) {
			r.refuse(reason, d, 1)
			continue
		}
		r.accept(a, d.src, form)
		r.step(event{kind: evAdvert, advert: a, from: d.src})
	}
	return nil
}

// accept records a valid advertisement, and says what is odd about it.
func (r *Router) accept(a Advertisement, from netip.Addr, form ChecksumForm) {
	now := r.now()
	r.learnForm(from, form)
	// A resignation has an interval of its own, see handoverInterval.
	sameInterval := a.Priority == priorityResign || a.Interval == r.config.AdvertInterval
	sameAddresses := len(a.Addresses) == len(r.config.Addresses)
	for _, addr := range a.Addresses {
		sameAddresses = sameAddresses && r.config.virtual(addr)
	}
	r.mu.Lock()
	s := &r.state
	s.Received++
	if a.Priority == priorityResign {
		s.ReceivedResign++
	}
	if !sameInterval {
		s.IntervalMismatches++
	}
	if !sameAddresses {
		s.AddressMismatches++
	}
	if a.Priority == priorityResign && s.Peer.Address == from {
		a.Interval = s.Peer.AdvertInterval
	}
	s.Peer = Peer{Address: from, Priority: a.Priority, AdvertInterval: a.Interval, Checksum: form}
	r.seen = now
	r.mu.Unlock()
	if fixed := r.config.checksum(); fixed != ChecksumAuto && form != fixed && r.config.Version != version2 {
		if n, ok := r.muteChecksum.Allow(now); ok {
			r.log.Warn("a peer uses another form of checksum than ours, which it may refuse", "peer", from,
				"form", form, "ours", fixed, "suppressed", n)
		}
	}
	if !sameInterval {
		// Version 3 backups follow the active router's interval, so it works.
		if n, ok := r.muteInterval.Allow(now); ok {
			r.log.Warn("a peer advertises another interval than ours", "peer", from,
				"interval", a.Interval, "ours", r.config.AdvertInterval, "suppressed", n)
		}
	}
	if !sameAddresses {
		if n, ok := r.muteAddress.Allow(now); ok {
			r.log.Warn("a peer advertises other addresses than ours", "peer", from,
				"addresses", a.Addresses, "ours", r.config.Addresses, "suppressed", n)
		}
	}
}

// refuse counts packets that were not acted upon.
func (r *Router) refuse(reason Refusal, d datagram, count int) {
	r.mu.Lock()
	r.state.refused[reason] += uint64(count)
	r.mu.Unlock()
	level := slog.LevelWarn
	if reason == RefusedVRID {
		level = slog.LevelDebug // a neighbour's virtual router is no trouble
	}
	if n, ok := r.mute[reason].Allow(r.now()); ok {
		args := []any{"reason", reason.String(), "source", d.src, "destination", d.dst, "ttl", d.ttl, "suppressed", n}
		if reason == RefusedHMACReplayed {
			args = append(args, "ahead_of_our_clock", r.filter.hmac.skew.Round(time.Millisecond))
		}
		r.log.Log(context.Background(), level, "refused an advertisement", args...)
	}
}
