package vrrp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// The authenticated trailer that keepalived 2.4 puts behind a message. All of it
// is big endian.
//
//	0  scheme, 1: HMAC-SHA-256 truncated to 128 bits
//	1  id of the key
//	2  reserved, 0
//	4  sequence: seconds since 1970 (4 bytes), their fraction in 1/65536 (2),
//	   and a counter (2)
//	12 HMAC (16)
const (
	trailerLen     = 28
	trailerScheme  = 1
	trailerMAC     = 12 // where the HMAC begins
	trailerMACLen  = trailerLen - trailerMAC
	minHMACKey     = 32 // bytes
	maxHMACKey     = 64
	minHMACWindow  = 5 * time.Second
	hmacIntervals  = 3 // the window in advertisement intervals, if that is more
	hmacSenders    = 8 // of whom the sequence is remembered; a pair has one
	sequenceSecond = uint64(1) << 32
)

// HMACMode is a step of the way to authentication that no node has to leave the
// election for: first all nodes receive, then all send, then all insist.
type HMACMode uint8

// The modes. A trailer that is there must be right in each of them.
const (
	HMACEnforce     HMACMode = iota // send it, refuse what has none
	HMACPermissive                  // send it, accept what has none
	HMACReceiveOnly                 // send none, accept what has none
)

var hmacModeNames = [...]string{HMACEnforce: "enforce", HMACPermissive: "permissive", HMACReceiveOnly: "receive-only"}

// String returns keepalived's name of the mode.
func (m HMACMode) String() string {
	if int(m) < len(hmacModeNames) {
		return hmacModeNames[m]
	}
	return fmt.Sprintf("hmac_mode(%d)", uint8(m))
}

// MarshalText implements encoding.TextMarshaler.
func (m HMACMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// HMAC is the authentication of advertisements by HMAC-SHA-256, as keepalived
// 2.4 has it (auth_hmac).
type HMAC struct {
	Mode HMACMode
	// Keys are the keys that are accepted, by id 1 to 255, of 32 to 64 bytes.
	Keys map[uint8]Secret
	// SendKey is the id of the key to send with; HMACReceiveOnly needs none.
	SendKey uint8
}

// String tells the mode, not the keys.
func (h HMAC) String() string { return "HMAC " + h.Mode.String() }

func (h *HMAC) validate() error {
	if len(h.Keys) == 0 {
		return fmt.Errorf("HMAC without a key")
	}
	for id, key := range h.Keys {
		if id == 0 {
			return fmt.Errorf("HMAC key id 0: use 1 to 255")
		}
		if len(key) < minHMACKey || len(key) > maxHMACKey {
			return fmt.Errorf("HMAC key %d has %d bytes: use %d to %d", id, len(key), minHMACKey, maxHMACKey)
		}
	}
	if int(h.Mode) >= len(hmacModeNames) {
		return fmt.Errorf("%v is no mode of HMAC", h.Mode)
	}
	if _, ok := h.Keys[h.SendKey]; !ok && h.Mode != HMACReceiveOnly {
		return fmt.Errorf("HMAC key %d to send with is not among the keys", h.SendKey)
	}
	return nil
}

// trailerHMAC computes the HMAC of a message with the part of its trailer before
// the HMAC. It covers a header made up of family, version, virtual router and
// source, so that nothing can be carried over to another router or sender. The
// checksum counts as zero: of IPv6 many stacks let the kernel fill it in.
func trailerHMAC(key Secret, src netip.Addr, message, trailer []byte) [trailerMACLen]byte {
	var pseudo [20]byte
	pseudo[0] = 4
	if src.Is6() {
		pseudo[0] = 6
	}
	pseudo[1], pseudo[2] = message[0]>>4, message[1]
	copy(pseudo[4:], src.AsSlice())
	var zero [trailerMACLen]byte
	h := hmac.New(sha256.New, []byte(key))
	h.Write(pseudo[:])
	h.Write(message[:6])
	h.Write(zero[:2])
	h.Write(message[headerLen:])
	h.Write(trailer[:trailerMAC])
	h.Write(zero[:])
	return [trailerMACLen]byte(h.Sum(nil))
}

// appendTrailer appends the trailer of a message to b.
func appendTrailer(b []byte, id uint8, key Secret, sequence uint64, src netip.Addr, message []byte) []byte {
	start := len(b)
	b = append(b, trailerScheme, id, 0, 0)
	b = binary.BigEndian.AppendUint64(b, sequence)
	mac := trailerHMAC(key, src, message, b[start:])
	return append(b, mac[:]...)
}

// authenticator signs and verifies trailers. It is used by one goroutine.
//
// # Replay
//
// A sequence is the sender's wall clock, and rising. Of a sender that was heard
// within the window a receiver demands that the sequence rise, of any other that
// it be close to the receiver's own wall clock. That needs no memory on disk, so
// a daemon that was restarted, on either side, goes on at once.
//
// Rising counters alone would need such a memory, and a receiver without one
// would take any old recording. A time window alone, as keepalived's, makes an
// active node unheard, and so a second one active, when either's clock is
// stepped: for that it would be worse than no authentication. So who is heard
// stays heard while its sequence rises, whatever the clocks say. A clock that is
// set back by more than the window is taken for a correction: the sender follows
// it, and a receiver forgets a mark that is ahead of its own clock. What remains
// is that nodes whose clocks differ by more than the window do not accept each
// other after a restart, or after one of them was set back. That ends when the
// clocks are right, and the log names the difference.
type authenticator struct {
	HMAC
	window  time.Duration
	wall    func() time.Time
	now     clock
	sent    uint64 // the last sequence
	senders map[netip.Addr]sender
	skew    time.Duration // of the last one refused for its time, to our clock
}

// sender is what is known of one who was heard.
type sender struct {
	sequence uint64
	at       time.Duration
}

func newAuthenticator(h HMAC, interval time.Duration, now clock, wall func() time.Time) *authenticator {
	return &authenticator{
		HMAC: h, window: max(minHMACWindow, hmacIntervals*interval), wall: wall, now: now,
		senders: map[netip.Addr]sender{},
	}
}

// sequenceOf puts a wall clock's time into the first 48 bits.
func sequenceOf(t time.Time) uint64 {
	return uint64(uint32(t.Unix()))<<32 | uint64(t.Nanosecond())<<16/1e9<<16
}

// sequenceAfter returns how much later a is than b, by serial number arithmetic
// (RFC 1982): the seconds wrap in 2106.
func sequenceAfter(a, b uint64) time.Duration {
	d := int64(a - b)
	return time.Duration(d>>32)*time.Second + time.Duration(uint64(d)&(sequenceSecond-1)>>16*1e9>>16)
}

// next returns the sequence of an advertisement to be sent.
func (a *authenticator) next() uint64 {
	wall := sequenceOf(a.wall())
	if ahead := sequenceAfter(a.sent, wall); a.sent != 0 && ahead >= 0 && ahead <= a.window {
		a.sent++ // the counter runs over into the time, which is as well
	} else {
		a.sent = wall
	}
	return a.sent
}

// sign appends a trailer to the message b, if this node sends one.
func (a *authenticator) sign(b []byte, sequence uint64, src netip.Addr) []byte {
	return appendTrailer(b, a.SendKey, a.Keys[a.SendKey], sequence, src, b)
}

// sends reports whether our advertisements have a trailer.
func (a *authenticator) sends() bool { return a != nil && a.Mode != HMACReceiveOnly }

// verify checks the trailer of a message, nil if there is none. The error is a
// [Refusal].
func (a *authenticator) verify(message, trailer []byte, src netip.Addr) error {
	if len(trailer) == 0 {
		if a.Mode == HMACEnforce {
			return RefusedHMACMissing
		}
		return nil
	}
	if trailer[0] != trailerScheme || trailer[2] != 0 || trailer[3] != 0 {
		return RefusedHMAC
	}
	key, ok := a.Keys[trailer[1]]
	if !ok {
		return RefusedHMACKey
	}
	mac := trailerHMAC(key, src, message, trailer)
	if !hmac.Equal(mac[:], trailer[trailerMAC:]) {
		return RefusedHMAC
	}
	if !a.fresh(binary.BigEndian.Uint64(trailer[4:]), src) {
		return RefusedHMACReplayed
	}
	return nil
}

// fresh reports whether a sequence is not a repetition, and remembers it then.
func (a *authenticator) fresh(sequence uint64, src netip.Addr) bool {
	now, wall := a.now(), sequenceOf(a.wall())
	offset := sequenceAfter(sequence, wall)
	timely := offset.Abs() <= a.window
	s, known := a.senders[src]
	fresh := timely
	if known {
		rising := int64(sequence-s.sequence) > 0
		ahead := sequenceAfter(s.sequence, wall) > a.window
		heard := now-s.at <= a.window
		fresh = rising && (timely || heard) || timely && ahead
	}
	if !fresh {
		a.skew = offset
		return false
	}
	if !known && len(a.senders) >= hmacSenders {
		a.forgetOldest()
	}
	a.senders[src] = sender{sequence: sequence, at: now}
	return true
}

// forgetOldest makes room. Only who has a key gets a place, so it cannot be
// taken away by forgery.
func (a *authenticator) forgetOldest() {
	var oldest netip.Addr
	for addr, s := range a.senders {
		if !oldest.IsValid() || s.at < a.senders[oldest].at {
			oldest = addr
		}
	}
	delete(a.senders, oldest)
}
