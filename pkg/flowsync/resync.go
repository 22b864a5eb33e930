package flowsync

import "fmt"

// Resync is the reason for a full copy.
type Resync uint8

// The reasons.
const (
	ResyncConnected Resync = iota // a connection began
	ResyncOverflow                // the peer was slower than the changes came
	ResyncLost                    // the datapath lost events
	ResyncAsked                   // the peer asked for it
	ResyncLease                   // we alone serve an address that we did not before
	ResyncTable                   // our table could not be read to its end
	numResyncs
)

var resyncNames = [numResyncs]string{"connected", "overflow", "lost", "asked", "lease", "table"}

// String returns the reason as used in metrics: one word, stable.
func (r Resync) String() string {
	if r < numResyncs {
		return resyncNames[r]
	}
	return fmt.Sprintf("resync(%d)", uint8(r))
}
