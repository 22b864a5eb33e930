package vrrp

import (
	"net"
	"testing"

	"github.com/mdlayher/ndp"
)

func TestParseClaim(t *testing.T) {
	hardware := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	full, err := ndp.MarshalMessage(unsolicited(hardware, vip6))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := parseClaim(full)
	if !ok || c.target != vip6 || c.hardware.String() != hardware.String() {
		t.Errorf("%+v, %v", c, ok)
	}
	bare, err := ndp.MarshalMessage(&ndp.NeighborAdvertisement{Solicited: true, TargetAddress: vip6})
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := parseClaim(bare); !ok || c.hardware != nil {
		t.Errorf("%+v, %v", c, ok)
	}
	for n := range full {
		if c, ok := parseClaim(full[:n]); ok && c.hardware != nil {
			t.Errorf("%d of %d bytes were taken for %+v", n, len(full), c)
		}
	}
	solicitation, err := ndp.MarshalMessage(&ndp.NeighborSolicitation{TargetAddress: vip6})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := parseClaim(solicitation); ok {
		t.Error("a solicitation was taken for a claim")
	}
}

func FuzzParseClaim(f *testing.F) {
	full, err := ndp.MarshalMessage(unsolicited(net.HardwareAddr{2, 0, 0, 0, 0, 1}, vip6))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte{neighborAdvertisement})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ok := parseClaim(b); ok && !c.target.Is6() {
			t.Errorf("%x claims %v", b, c.target)
		}
	})
}
