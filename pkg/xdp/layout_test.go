package xdp

import (
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// handshakeRow is a struct handshake, which only the program itself reads.
type handshakeRow[A address] struct {
	Key        flowKey[A]
	Ticket     uint32
	Tried      uint64
	OpenedNs   uint64
	Seq        uint32
	Window     uint16
	OptionsLen uint8
	TOS        uint8
	TCPFlags   uint8
	Anew       uint8
	Pad        [2]uint8
	FlowLabel  uint32
	Options    [40]byte
}

// The C structs and their mirrors have the same fields in the same places.
func TestLayouts(t *testing.T) {
	for _, family := range []struct {
		name string
		load func() (*ebpf.CollectionSpec, error)
		rows map[string]any
	}{
		{"IPv4", loadBalancer, map[string]any{
			"flow_key": flowKey[addr4]{}, "flow": flowRow[addr4]{}, "vip": vipRow{}, "service_key": serviceKey[addr4]{}, "vip_hint": hintRow[addr4]{},
			"service": serviceRow[addr4]{}, "slot": slotRow{}, "schedule": scheduleRow{}, "backend": backendRow[addr4]{},
			"backend_key": backendKey[addr4]{}, "load": loadRow{}, "connect_time": connectTimeRow{}, "network": networkKey[addr4]{},
			"traffic": trafficRow{}, "reap_request": reapRequest[addr4]{}, "clear_request": clearRequest{},
			"clock_request": clockRequest{}, "handshake": handshakeRow[addr4]{},
			"flow_event": eventRow[addr4]{}, "replica": replicaRow[addr4]{},
		}},
		{"IPv6", loadBalancer6, map[string]any{
			"flow_key": flowKey[addr6]{}, "flow": flowRow[addr6]{}, "vip": vipRow{}, "service_key": serviceKey[addr6]{}, "vip_hint": hintRow[addr6]{},
			"service": serviceRow[addr6]{}, "slot": slotRow{}, "schedule": scheduleRow{}, "backend": backendRow[addr6]{},
			"backend_key": backendKey[addr6]{}, "load": loadRow{}, "connect_time": connectTimeRow{}, "network": networkKey[addr6]{},
			"traffic": trafficRow{}, "reap_request": reapRequest[addr6]{}, "handshake": handshakeRow[addr6]{},
			"flow_event": eventRow[addr6]{}, "replica": replicaRow[addr6]{},
		}},
	} {
		spec, err := family.load()
		if err != nil {
			t.Fatal(err)
		}
		for name, row := range family.rows {
			var c *btf.Struct
			if err := spec.Types.TypeByName(name, &c); err != nil {
				t.Errorf("%s: %s: %v", family.name, name, err)
				continue
			}
			compareLayout(t, family.name+": "+name, c, reflect.TypeOf(row))
		}
	}
}

func compareLayout(t *testing.T, name string, c *btf.Struct, mirror reflect.Type) {
	t.Helper()
	if uintptr(c.Size) != mirror.Size() {
		t.Errorf("%s: %d bytes, the mirror has %d", name, c.Size, mirror.Size())
	}
	if len(c.Members) != mirror.NumField() {
		t.Errorf("%s: %d fields, the mirror has %d", name, len(c.Members), mirror.NumField())
		return
	}
	for i, m := range c.Members {
		f := mirror.Field(i)
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		same := strings.EqualFold(strings.ReplaceAll(m.Name, "_", ""), f.Name)
		if !same || uintptr(m.Offset.Bytes()) != f.Offset || uintptr(size) != f.Type.Size() {
			t.Errorf("%s: field %s at %d of %d bytes, the mirror has %s at %d of %d", name,
				m.Name, m.Offset.Bytes(), size, f.Name, f.Offset, f.Type.Size())
		}
	}
}
