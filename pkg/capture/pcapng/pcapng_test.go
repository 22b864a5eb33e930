package pcapng

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	start = time.Unix(1700000000, 123456789)
	iface = Interface{Name: "eth0", Description: "what", Filter: "port 5432", SnapLen: 60, Application: "pgsteer v1", OS: "Linux 6.1"}
)

// frame is an Ethernet frame with IPv4 and UDP, size bytes long.
func frame(size int) []byte {
	b := make([]byte, size)
	b[12], b[13] = 8, 0
	ip := b[14:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(size-14))
	ip[8], ip[9] = 64, 17
	copy(ip[12:], []byte{192, 168, 1, 50, 192, 168, 1, 100})
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], 53)
	binary.BigEndian.PutUint16(ip[24:], uint16(size-34))
	return b
}

// packets have lengths of all four paddings.
func packets() (all []Packet) {
	for i := range 5 {
		full := frame(60 + i)
		all = append(all, Packet{
			Time: start.Add(time.Duration(i) * time.Microsecond), Data: full[:60-i], Len: len(full),
			Comment: "tx_new"[:6-i], Direction: Inbound, ID: uint64(i), XDPAction: 3,
		})
	}
	all[4].Direction = Outbound
	return all
}

func written(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, iface)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packets() {
		if err := w.Packet(p); err != nil {
			t.Fatal(err)
		}
	}
	err = w.Statistics(Statistics{Start: start, End: start.Add(time.Second), Received: 9, Accepted: 7, Dropped: 2, Delivered: 5})
	if err := errors.Join(err, w.Flush()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// block is a block taken apart.
type block struct {
	kind    uint32
	body    []byte // before the options
	options map[uint16]string
}

// read takes a file apart, and fails at whatever the specification does not
// allow.
func read(t *testing.T, b []byte) (blocks []block) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 12 {
			t.Fatalf("%d bytes after the last block", len(b))
		}
		kind, size := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
		if size%4 != 0 || size < 12 || int(size) > len(b) {
			t.Fatalf("block 0x%x of %d bytes, of %d", kind, size, len(b))
		}
		if last := binary.NativeEndian.Uint32(b[size-4:]); last != size {
			t.Fatalf("block 0x%x begins with length %d and ends with %d", kind, size, last)
		}
		body := b[8 : size-4]
		// What comes before the options.
		fixed, ok := map[uint32]int{sectionHeader: 16, interfaceDescr: 8, enhancedPacket: 20, interfaceStatistics: 12}[kind]
		if !ok {
			t.Fatalf("block of unknown type 0x%x", kind)
		}
		if kind == enhancedPacket {
			fixed += (int(binary.NativeEndian.Uint32(body[12:])) + 3) / 4 * 4
		}
		blocks = append(blocks, block{kind, body[:fixed], options(t, body[fixed:])})
		b = b[size:]
	}
	return blocks
}

func options(t *testing.T, b []byte) map[uint16]string {
	t.Helper()
	all := make(map[uint16]string)
	for len(b) >= 4 {
		code, size := binary.NativeEndian.Uint16(b), int(binary.NativeEndian.Uint16(b[2:]))
		if code == optEnd {
			if size != 0 || len(b) != 4 {
				t.Fatalf("the end of options has length %d, and %d bytes follow", size, len(b)-4)
			}
			return all
		}
		padded := (size + 3) / 4 * 4
		if 4+padded > len(b) {
			t.Fatalf("option %d of %d bytes, of %d", code, size, len(b))
		}
		if strings.Trim(string(b[4+size:4+padded]), "\x00") != "" {
			t.Fatalf("option %d is padded with something", code)
		}
		if _, twice := all[code]; twice {
			t.Fatalf("option %d twice", code)
		}
		all[code] = string(b[4 : 4+size])
		b = b[4+padded:]
	}
	t.Fatal("options without an end")
	return nil
}

func u64(v uint64) string { return string(binary.NativeEndian.AppendUint64(nil, v)) }

// stamp is a timestamp of two halves.
func stamp(t time.Time) string {
	b := binary.NativeEndian.AppendUint32(nil, uint32(uint64(t.UnixNano())>>32))
	return string(binary.NativeEndian.AppendUint32(b, uint32(t.UnixNano())))
}

func (b block) expect(t *testing.T, kind uint32, body string, options map[uint16]string) {
	t.Helper()
	if b.kind != kind {
		t.Fatalf("block 0x%x, want 0x%x", b.kind, kind)
	}
	if string(b.body) != body {
		t.Errorf("block 0x%x is\n%x, want\n%x", kind, b.body, body)
	}
	if len(b.options) != len(options) {
		t.Errorf("block 0x%x has options %v, want %v", kind, b.options, options)
	}
	for code, want := range options {
		if b.options[code] != want {
			t.Errorf("block 0x%x, option %d is %q, want %q", kind, code, b.options[code], want)
		}
	}
}

func TestBlocks(t *testing.T) {
	blocks := read(t, written(t))
	if len(blocks) != 8 {
		t.Fatalf("%d blocks", len(blocks))
	}
	u32 := func(values ...uint32) (s string) {
		for _, v := range values {
			s += string(binary.NativeEndian.AppendUint32(nil, v))
		}
		return s
	}
	u16 := func(a, b uint16) string {
		return string(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, a), b))
	}
	blocks[0].expect(t, 0x0A0D0D0A, u32(0x1A2B3C4D)+u16(1, 0)+u64(1<<64-1), map[uint16]string{3: "Linux 6.1", 4: "pgsteer v1"})
	blocks[1].expect(t, 1, u16(1, 0)+u32(60), map[uint16]string{2: "eth0", 3: "what", 9: "\x09", 11: "\x00port 5432"})
	for i, p := range packets() {
		data := string(p.Data) + strings.Repeat("\x00", (4-len(p.Data)%4)%4)
		direction := uint32(1)
		if i == 4 {
			direction = 2
		}
		blocks[2+i].expect(t, 6, u32(0)+stamp(p.Time)+u32(uint32(60-i), uint32(60+i))+data,
			map[uint16]string{1: "tx_new"[:6-i], 2: u32(direction), 5: u64(uint64(i)), 7: "\x02" + u64(3)})
	}
	end := start.Add(time.Second)
	blocks[7].expect(t, 5, u32(0)+stamp(end), map[uint16]string{2: stamp(start), 3: stamp(end), 4: u64(9), 6: u64(7), 7: u64(2), 8: u64(5)})
}

// Somebody else's reader.
func TestTcpdumpReads(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("tcpdump is not installed")
	}
	path := filepath.Join(t.TempDir(), "capture.pcapng")
	if err := os.WriteFile(path, written(t), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(tcpdump, "-n", "-tt", "--time-stamp-precision=nano", "-r", path)
	// Root gives up its rights to a user who may not read the directory.
	if os.Getuid() == 0 {
		c.Args = append(c.Args, "-Z", "root")
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(string(out), "1700000000.123456789 IP 192.168.1.50.40000 > 192.168.1.100.53") {
		t.Errorf("the first packet is not what was written:\n%s", out)
	}
	if got := strings.Count(string(out), "192.168.1.50.40000 > 192.168.1.100.53"); got != 5 {
		t.Errorf("%d packets, want 5:\n%s", got, out)
	}
}

func TestOptionTooLong(t *testing.T) {
	long := iface
	long.Filter = strings.Repeat("x", 1<<16)
	if _, err := NewWriter(&bytes.Buffer{}, long); err == nil {
		t.Error("an option of 65537 bytes was written")
	}
}

// broken takes some bytes.
type broken struct{ room int }

func (b *broken) Write(p []byte) (int, error) {
	if len(p) > b.room {
		return b.room, os.ErrClosed
	}
	b.room -= len(p)
	return len(p), nil
}

func TestErrorStays(t *testing.T) {
	w, err := NewWriter(&broken{room: 100}, iface)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if err := w.Packet(packets()[0]); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a packet: %v", err)
	}
	if err := w.Statistics(Statistics{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("statistics: %v", err)
	}
}
