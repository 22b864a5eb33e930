package pooler

import "net"

// rationed is a connection whose goroutine computes only while it has one of a
// few slots. It is without one while it waits for the peer.
//
// A login with SCRAM computes for 20 to 50 microseconds with cached keys, and for
// milliseconds without them. After a failover thousands of clients log in at
// once: the loop, which is one goroutine among them, would have its turn after
// all of them. As it is, it has it after as many as there are slots.
type rationed struct {
	net.Conn
	slots chan struct{} // shared
	done  <-chan struct{}
	has   bool // one of them
}

// acquire waits for a slot, or for the end of the pooler: whoever is left then is
// not held up.
func (r *rationed) acquire() {
	select {
	case r.slots <- struct{}{}:
		r.has = true
	case <-r.done:
	}
}

// release gives the slot back.
func (r *rationed) release() {
	if r.has {
		r.has = false
		<-r.slots
	}
}

// Read waits for the peer without a slot.
func (r *rationed) Read(b []byte) (int, error) {
	r.release()
	defer r.acquire()
	return r.Conn.Read(b)
}
