package load

import (
	"net"
	"strings"
	"testing"
	"time"
)

func TestCrowd(t *testing.T) {
	address, goodBye := server(t, false)
	c := Crowd{Dial: new(net.Dialer).DialContext, Address: address, User: "u", Database: "d"}
	for i := range 2 {
		if err := c.Gather(t.Context(), 50); err != nil || c.Len() != 50*(i+1) {
			t.Fatalf("%d sessions, %v", c.Len(), err)
		}
	}
	if err := c.Ask(); err != nil {
		t.Error(err)
	}
	if n := goodBye.Load(); n != 0 {
		t.Errorf("%d sessions ended by themselves", n)
	}
	c.Close()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for goodBye.Load() != 100 {
		select {
		case <-deadline:
			t.Fatalf("%d of 100 sessions ended as they should", goodBye.Load())
		case <-tick.C:
		}
	}
}

func TestCrowdRefused(t *testing.T) {
	address, _ := server(t, true)
	c := Crowd{Dial: new(net.Dialer).DialContext, Address: address, User: "u", Database: "d"}
	defer c.Close()
	err := c.Gather(t.Context(), 99)
	if err == nil || !strings.HasPrefix(err.Error(), "gathering 99 sessions: 33 of 99 failed, the first: logging in: ") || !strings.Contains(err.Error(), "enough") {
		t.Errorf("got %v", err)
	}
	if c.Len() != 66 {
		t.Errorf("%d sessions are held, want the 66 that were not refused", c.Len())
	}
	if err := c.Ask(); err != nil {
		t.Error(err)
	}
	// The server ends a session after one query.
	if err := c.Ask(); err == nil || !strings.Contains(err.Error(), "66 of 66 failed, the first: querying: ") {
		t.Errorf("asked once more: %v", err)
	}
}
