package vrrp

import (
	"bytes"
	"net"
	"testing"

	"github.com/mdlayher/ndp"
)

// TestGoldenNeighborAdvertisement holds the message against one put together by
// hand from RFC 4861 section 4.4, with the flags R and O.
func TestGoldenNeighborAdvertisement(t *testing.T) {
	want := unhex(t, "8800d80b a0000000 fd000001000000000000000000000100 0201 020000000001")
	na := unsolicited(net.HardwareAddr{2, 0, 0, 0, 0, 1}, vip6)
	got, err := ndp.MarshalMessageChecksum(na, local1, allNodes)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
}
