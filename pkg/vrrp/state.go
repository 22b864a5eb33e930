package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// State is the protocol state of a virtual router, RFC 9568 section 6.3.
type State uint8

// The states.
const (
	Init   State = iota // not running
	Backup              // listens to the active router
	Active              // owns the addresses
)

var stateNames = [...]string{Init: "init", Backup: "backup", Active: "active"}

// String returns the name used in logs, metrics and the CLI.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("unknown state %q", text)
	}
	*s = State(i)
	return nil
}

// Times in the machine are durations since an arbitrary fixed instant, on a
// clock that never goes back and that counts suspended time.

// event is what happens to the machine. Exactly the fields of its kind count.
type event struct {
	kind   eventKind
	advert Advertisement // evAdvert
	from   netip.Addr    // evAdvert
	began  time.Duration // evSent: the time just before sending
	ok     bool          // evSent: it left this node; evSync: we are synced
	reason string        // evFault, evStop, evSync, evResign, evTakeover, evConflict
	name   string        // evTrack
	track  Track         // evTrack

	// What is known from elsewhere, of every event.
	seen       bool          // there was a sign from outside,
	seenAgo    time.Duration // so long ago
	peerActive bool          // the other node says that it holds a lease
}

type eventKind uint8

const (
	evStart    eventKind = iota // begin as Backup
	evTimer                     // the machine's deadline has come
	evAdvert                    // a valid advertisement was received
	evSent                      // an actSend was carried out
	evFault                     // the addresses cannot be owned
	evStop                      // resign and become Init
	evTrack                     // something tracked has changed
	evSync                      // we are synced, or not
	evResign                    // give the role up, and stand back
	evTakeover                  // take the role
	evGiveUp                    // nobody waits for the take-over any more
	evConflict                  // somebody else answers for the addresses
)

// action is what the machine wants done, in order.
type action struct {
	kind     actionKind
	priority uint8         // actSend
	interval time.Duration // actSend: another than ours, if not 0
	until    time.Duration // actRenew
	from, to State         // actTransition
	rival    netip.Addr    // actContention
	wins     bool          // actContention: we keep the role
	reason   string        // actTransition, actContention, actOutcome, actBarred
}

type actionKind uint8

const (
	actSend       actionKind = iota // send an advertisement, then report evSent
	actRenew                        // extend the fence's lease to until
	actRevoke                       // end the fence's lease now
	actOwn                          // take the addresses and announce them
	actDisown                       // give the addresses up
	actAnnounce                     // announce the addresses again
	actTransition                   // tell that the state has changed
	actContention                   // tell that another node is active too
	actOutcome                      // tell what came of a planned move
	actBarred                       // tell why we do not become active
)
