package vrrp

import (
	"fmt"
	"net/netip"
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

// Times in the machine are durations since an arbitrary fixed instant, on a
// clock that never goes back and that counts suspended time.

// event is what happens to the machine. Exactly the fields of its kind count.
type event struct {
	kind   eventKind
	advert Advertisement // evAdvert
	from   netip.Addr    // evAdvert
	began  time.Duration // evSent: the time just before sending
	ok     bool          // evSent: it left this node
	reason string        // evFault, evStop
}

type eventKind uint8

const (
	evStart  eventKind = iota // begin as Backup
	evTimer                   // the machine's deadline has come
	evAdvert                  // a valid advertisement was received
	evSent                    // an actSend was carried out
	evFault                   // the addresses cannot be owned
	evStop                    // resign and become Init
)

// action is what the machine wants done, in order.
type action struct {
	kind     actionKind
	priority uint8         // actSend
	until    time.Duration // actRenew
	from, to State         // actTransition
	reason   string        // actTransition
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
)
