package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// offline is a capture of one side or both that is attached to nothing.
func offline(side Side) *Capture {
	return &Capture{cfg: Config{Side: side, SnapLen: 256}, attached: &attachment{target: target{iface: "lan0"}}}
}

// somePackets are one that was sent and one that was dropped.
func somePackets() []*Packet {
	at := time.Date(2024, 2, 29, 15, 4, 5, 123456789, time.Local)
	in, dropped := fromClient(syn), fromClient(ack)
	out := in
	out.src, out.dst = netip.AddrPortFrom(vip.Addr(), 10240), pooler
	dropped.payload = 7
	frame := func(d time.Duration, s segment) Frame {
		return Frame{Time: at.Add(d), Len: len(s.frame()), Data: s.frame()}
	}
	return []*Packet{
		{ID: 1, Verdict: "tx_new", Action: xdpTX, In: frame(0, in), Out: frame(time.Microsecond, out)},
		{ID: 2, Verdict: "drop_ttl", Action: xdpDrop, In: frame(time.Second, dropped)},
	}
}

func TestText(t *testing.T) {
	lines := []string{
		"15:04:05.123456 1 in  tx_new 192.168.1.50:40000 > 192.168.1.100:5432 tcp [S] seq 1000 len 0\n",
		"15:04:05.123457 1 out tx_new 192.168.1.100:10240 > 192.168.1.5:6432 tcp [S] seq 1000 len 0\n",
		"15:04:06.123456 2 in  drop_ttl 192.168.1.50:40000 > 192.168.1.100:5432 tcp [.] seq 1000 ack 2000 len 7\n",
	}
	for side, want := range map[Side]string{
		Both: lines[0] + lines[1] + lines[2],
		In:   lines[0] + lines[2],
		Out:  lines[1],
	} {
		var b bytes.Buffer
		text := offline(side).NewText(&b)
		for _, p := range somePackets() {
			if err := text.Packet(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := text.Flush(); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("side %s:\n%s want\n%s", side, b.String(), want)
		}
	}
}

func TestFile(t *testing.T) {
	for side, want := range map[Side][]string{
		Both: {"tx_new 1 1 3", "tx_new 2 1 3", "drop_ttl 1 2 1"},
		In:   {"tx_new 1 1 3", "drop_ttl 1 2 1"},
		Out:  {"tx_new 2 1 3"},
	} {
		var b bytes.Buffer
		file, err := offline(side).NewFile(&b, "pgsteer", "Linux")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range somePackets() {
			if err := file.Packet(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := file.Finish(Counts{Seen: 3, Accepted: 2}); err != nil {
			t.Fatal(err)
		}
		// The comment and the last options of each packet block: flags, packet
		// id and verdict. The format itself is held by its own package's tests.
		var got []string
		for rest := b.Bytes(); len(rest) > 0; {
			size := binary.NativeEndian.Uint32(rest[4:])
			if binary.NativeEndian.Uint32(rest) == 6 {
				tail := rest[size-44 : size]
				comment := "tx_new"
				if bytes.Contains(rest[:size], []byte("drop_ttl")) {
					comment = "drop_ttl"
				}
				got = append(got, comment+" "+digits(tail[4], tail[12], tail[25]))
			}
			rest = rest[size:]
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("side %s: %v, want %v", side, got, want)
		}
		tcpdumpReads(t, &b, len(want))
	}
}

func digits(values ...byte) string {
	var s []string
	for _, v := range values {
		s = append(s, string('0'+v))
	}
	return strings.Join(s, " ")
}

// tcpdumpReads wants tcpdump, where it is installed, to find n packets.
func tcpdumpReads(t *testing.T, file *bytes.Buffer, n int) {
	t.Helper()
	path, err := exec.LookPath("tcpdump")
	if err != nil {
		return
	}
	c := exec.Command(path, "-n", "-r", "-")
	c.Stdin = file
	out, err := c.Output()
	if got := strings.Count(string(out), " > "); err != nil || got != n {
		t.Errorf("tcpdump finds %d packets, want %d: %v\n%s", got, n, err, out)
	}
}

func TestFrameText(t *testing.T) {
	tcp := fromClient(syn | ack).frame()
	udp := bytes.Clone(tcp[:42])
	udp[23] = 17
	udp[17] = 28
	fragment := bytes.Clone(tcp)
	fragment[21] = 1
	icmp := bytes.Clone(tcp)
	icmp[23] = 1
	malformed := bytes.Clone(tcp)
	malformed[14] = 0x44
	arp := bytes.Clone(tcp[:42])
	copy(arp[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1})
	copy(arp[22:], net.HardwareAddr{2, 0, 0, 0, 0, 0xa})
	copy(arp[28:], []byte{192, 168, 1, 50})
	copy(arp[38:], []byte{192, 168, 1, 100})
	reply := bytes.Clone(arp)
	reply[21] = 2
	odd := bytes.Clone(arp)
	odd[21] = 8
	six := make([]byte, 14+40+20)
	copy(six[12:], []byte{0x86, 0xdd, 0x60})
	six[14+5], six[14+6] = 20, 6
	copy(six[14+8:], netip.MustParseAddr("fd00::1").AsSlice())
	copy(six[14+24:], netip.MustParseAddr("fd00::2").AsSlice())
	copy(six[54:], tcp[34:54])
	tagged := append(append(bytes.Clone(tcp[:12]), 0x88, 0xa8, 0x20, 5, 0x81, 0, 0, 7), tcp[12:]...)
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"TCP", tcp, "192.168.1.50:40000 > 192.168.1.100:5432 tcp [S.] seq 1000 ack 2000 len 0"},
		{"TCP cut off", tcp[:50], "192.168.1.50 > 192.168.1.100 protocol 6, length 20"},
		{"UDP", udp, "192.168.1.50:40000 > 192.168.1.100:5432 udp len 0"},
		{"ICMP", icmp, "192.168.1.50 > 192.168.1.100 protocol 1, length 20"},
		{"fragment", fragment, "192.168.1.50 > 192.168.1.100 fragment of protocol 6, length 40"},
		{"malformed", malformed, "192.168.1.50 > 192.168.1.100 malformed IPv4 header"},
		{"IPv4 cut off", tcp[:30], "ethertype 0x0800, 999 bytes"},
		{"Ethernet cut off", tcp[:10], "999 bytes, too short for Ethernet"},
		{"ARP request", arp, "arp who-has 192.168.1.100 tell 192.168.1.50"},
		{"ARP reply", reply, "arp 192.168.1.50 is at 02:00:00:00:00:0a"},
		{"other ARP", odd, "arp operation 8 from 192.168.1.50"},
		{"two tags", tagged, "vlan 5 vlan 7 192.168.1.50:40000 > 192.168.1.100:5432 tcp [S.] seq 1000 ack 2000 len 0"},
		{"tag cut off", tagged[:16], "ethertype 0x88a8, 999 bytes"},
		{"IPv6", six, "[fd00::1]:40000 > [fd00::2]:5432 tcp [S.] seq 1000 ack 2000 len 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(appendFrame(nil, &Frame{Len: 999, Data: tt.data})); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// Whatever comes through the ring is refused or decoded, never believed.
func FuzzDecode(f *testing.F) {
	f.Add(make([]byte, eventSize), []byte("frame"))
	f.Fuzz(func(t *testing.T, record, frame []byte) {
		var p Packet
		if err := offline(Both).decode(record, &p); err == nil && len(p.In.Data)+len(p.Out.Data) != len(record)-eventSize {
			t.Error("bytes were lost or made up")
		}
		appendFrame(nil, &Frame{Len: len(frame), Data: frame})
	})
}

func TestDecode(t *testing.T) {
	c := offline(Both)
	c.wanted = verdicts{5: "tx_new"}
	record, err := binary.Append(nil, binary.NativeEndian, &probeEvent{
		Received: 1, Left: 2, Verdict: 5, Action: 3,
		In: probeExtent{Len: 10, Captured: 3}, Out: probeExtent{Len: 20, Captured: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(record) != eventSize {
		t.Fatalf("%d bytes, want %d", len(record), eventSize)
	}
	var p Packet
	if err := c.decode(append(record, "inxyz"...), &p); err != nil {
		t.Fatal(err)
	}
	if p.Verdict != "tx_new" || p.Action != 3 || string(p.In.Data) != "inx" || string(p.Out.Data) != "yz" || p.In.Len != 10 || p.Out.Len != 20 ||
		!p.In.Time.Equal(c.boot.Add(1)) || !p.Out.Time.Equal(c.boot.Add(2)) {
		t.Errorf("decoded %+v", p)
	}
	for _, wrong := range [][]byte{nil, record[:eventSize-1], record, append(bytes.Clone(record), "four"...)} {
		if err := c.decode(wrong, &p); err == nil {
			t.Errorf("a record of %d bytes was decoded", len(wrong))
		}
	}
	if errors.Is(explainLoad(errors.New("x")), ErrRefused) {
		t.Error("any error is taken for a refusal")
	}
}
