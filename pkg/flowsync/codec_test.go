package flowsync

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// opsOf decodes the records of a batch.
func opsOf(body []byte, pairs []pair) ([]op, error) {
	r := receiver{theirs: &book{pairs: pairs}}
	err := r.parseOps(&cursor{b: body}, "records")
	return r.ops, err
}

// fullRecord has something in every field.
func fullRecord(vip int) lb.FlowRecord {
	f := testFlow(vip, 7, 9)
	f.State, f.FinAck = math.MaxUint16, math.MaxUint32
	f.Age, f.Idle = 1234567*time.Microsecond, 890*time.Microsecond
	f.PacketsIn, f.BytesOut = math.MaxUint64, 1<<40
	return f
}

// withoutDebt is the record with no age below nothing.
func withoutDebt(f lb.FlowRecord) lb.FlowRecord {
	f.Age = max(0, f.Age)
	return f
}

func TestRecordRoundTrip(t *testing.T) {
	b := newBook(testServices(2))
	for name, tc := range map[string]struct {
		f      lb.FlowRecord
		closed bool
		size   int
	}{
		"IPv4":                    {f: testFlow(0, 7, 9), size: 43},
		"IPv6":                    {f: testFlow(1, 7, 9), size: 67},
		"IPv4, closed":            {f: testFlow(0, 7, 9), closed: true, size: 14},
		"IPv6, closed":            {f: testFlow(1, 7, 9), closed: true, size: 38},
		"everything":              {f: fullRecord(0), size: 58},
		"not in the dictionary":   {f: testFlow(4, 7, 9), size: 55},
		"no longer there, closed": {f: testFlow(4, 7, 9), closed: true, size: 26},
		"IPv6, not in there":      {f: testFlow(3, 7, 9), size: 103},
		"largest":                 {f: fullRecord(3), size: 118},
		"no age":                  {f: func() lb.FlowRecord { f := testFlow(0, 1, 1); f.Age = -1; return f }(), size: 42},
	} {
		t.Run(name, func(t *testing.T) {
			frame := appendRecord(nil, &tc.f, tc.closed, b)
			if len(frame) != tc.size {
				t.Errorf("%d bytes, want %d", len(frame), tc.size)
			}
			got, err := opsOf(frame, b.pairs)
			if err != nil || len(got) != 1 || got[0].closed != tc.closed {
				t.Fatalf("got %+v, %v", got, err)
			}
			if got[0].record.ID() != tc.f.ID() || !tc.closed && got[0].record != withoutDebt(tc.f) {
				t.Errorf("got %+v, want %+v", got[0].record, tc.f)
			}
			for n := range frame {
				if got, err := opsOf(frame[:n], b.pairs); n > 0 && !errors.Is(err, errMalformed) {
					t.Errorf("%d bytes of it are %+v, %v", n, got, err)
				}
			}
		})
	}
}

func TestEncodable(t *testing.T) {
	good := testFlow(0, 1, 1)
	for name, tc := range map[string]struct {
		change func(*lb.FlowRecord)
		want   bool
	}{
		"good":           {func(*lb.FlowRecord) {}, true},
		"empty":          {func(f *lb.FlowRecord) { *f = lb.FlowRecord{} }, false},
		"no backend":     {func(f *lb.FlowRecord) { f.Backend = netip.AddrPort{} }, false},
		"mixed families": {func(f *lb.FlowRecord) { f.SNAT = netip.MustParseAddrPort("[::1]:1") }, false},
		"mapped address": {func(f *lb.FlowRecord) { f.Client = netip.MustParseAddrPort("[::ffff:1.2.3.4]:1") }, false},
		"IPv6":           {func(f *lb.FlowRecord) { *f = testFlow(1, 1, 1) }, true},
		"IPv6 with zone": {func(f *lb.FlowRecord) {
			*f = testFlow(1, 1, 1)
			f.Client = netip.MustParseAddrPort("[fe80::1%eth0]:1")
		}, false},
	} {
		f := good
		tc.change(&f)
		if got := encodable(&f); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// largestServices is the most that a node can have, under the longest names.
func largestServices() []lb.Service {
	var out []lb.Service
	for i := range lb.MaxServices {
		s := lb.Service{Name: strings.Repeat("s", lb.MaxNameLen), Addr: netip.AddrPortFrom(testVIP(2*i+1), 5432)}
		for range lb.MaxBackends {
			s.Backends = append(s.Backends, lb.Backend{Name: strings.Repeat("b", lb.MaxNameLen), Addr: netip.AddrPortFrom(testHost(1, 0, 5), 6432)})
		}
		out = append(out, s)
	}
	return out
}

func TestDictionaryRoundTrip(t *testing.T) {
	for _, services := range [][]lb.Service{nil, testServices(5), largestServices()} {
		want := newBook(services)
		k, body, _, err := readFrame(bufio.NewReader(bytes.NewReader(appendBook(nil, want))), nil)
		if err != nil || k != kindDictionary {
			t.Fatalf("kind %d, %v", k, err)
		}
		got, err := parseBook(body)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d services: not the same", len(services))
		}
	}
}

func TestDifferencesSaid(t *testing.T) {
	ours, theirs := testServices(3), testServices(4)
	theirs[0].Addr = netip.MustParseAddrPort("192.168.1.99:5432")
	theirs[1].Backends[2].Addr = netip.MustParseAddrPort("[fd00:1::9]:6434")
	theirs[2].Backends = append(theirs[2].Backends[1:], lb.Backend{Name: "pooler9", Addr: netip.MustParseAddrPort("10.0.0.9:6432")})
	ours = append(ours, lb.Service{Name: "mine", Addr: netip.MustParseAddrPort("192.168.1.98:5432")})
	want := []string{
		"service service0 is at 192.168.1.100:5432 here and at 192.168.1.99:5432 on lb2",
		"backend service1/pooler2 is at [fd00:1::6]:6434 here and at [fd00:1::9]:6434 on lb2",
		"backend service2/pooler0 (10.0.0.5:6432) is not configured on lb2",
		"backend service2/pooler9 (10.0.0.9:6432) is configured on lb2 only",
		"service mine (192.168.1.98:5432) is not configured on lb2",
		"service service3 ([fd00::103]:5432) is configured on lb2 only",
	}
	if d := cmp.Diff(want, differences(newBook(ours), newBook(theirs), "lb2")); d != "" {
		t.Error(d)
	}
}

func TestStateBounds(t *testing.T) {
	s := State{Node: "lb1", Routers: []RouterState{{Name: "main", Leased: true, Addresses: []netip.Addr{testVIP(1), testVIP(0), testVIP(1)}}}}
	if got := s.serves(); !slices.Equal(got, []netip.Addr{testVIP(0), testVIP(1)}) {
		t.Errorf("serves %v", got)
	}
	frame, whole, err := appendState(nil, s)
	if err != nil || !whole {
		t.Fatalf("whole %v, %v", whole, err)
	}
	got, err := parseState(frame[frameHeader:])
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("got %+v, %v; want %+v", got, err, s)
	}
	s.Backends = []BackendState{{Reason: strings.Repeat("x", maxState)}}
	frame, whole, err = appendState(frame[:0], s)
	if got, _ := parseState(frame[frameHeader:]); err != nil || whole || len(got.Routers) != 1 || got.Backends != nil {
		t.Errorf("a long one: %+v, whole %v, %v", got, whole, err)
	}
	s.Routers[0].Reason = s.Backends[0].Reason
	if frame, _, err = appendState(frame[:5], s); err == nil || len(frame) != 5 {
		t.Errorf("a longer one: %d bytes, %v", len(frame), err)
	}
}

// FuzzFrames feeds any bytes to whatever a peer's bytes come to. Nothing panics,
// nothing takes more memory than a frame may.
func FuzzFrames(f *testing.F) {
	b := newBook(testServices(2))
	s := newSender(b, time.Second, 100)
	s.connected(0, nil)
	s.servePeer(nil)
	var stream []byte
	for range 3 {
		stream, _, _ = s.next(0, stream)
	}
	s.publish([]lb.FlowChange{{Record: testFlow(0, 1, 1)}, {Record: testFlow(1, 2, 2)}, {Record: testFlow(3, 2, 2)}, {Record: testFlow(0, 1, 1), Gone: true}}, 0)
	stream, _, _ = s.next(maxDelay, stream)
	s.offer(s.epoch, []lb.FlowRecord{testFlow(0, 5, 5), fullRecord(1)})
	stream, _, _ = s.next(maxDelay, stream)
	s.finish(s.epoch, []netip.Addr{testVIP(0), testVIP(1)}, nil)
	stream, _, _ = s.next(maxDelay, stream)
	f.Add(stream)
	f.Add(appendReason(nil, kindGap, "lost"))
	f.Add(appendNumber(appendNumber(nil, kindAck, 3), kindAck, math.MaxUint64))
	f.Add(appendHello(nil, hello{1, 2, "lb1"}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 9})
	f.Fuzz(func(t *testing.T, stream []byte) {
		table := newMemTable()
		r := receiver{table: table, ours: func() *book { return b }}
		r.connected()
		reader, buf := bufio.NewReader(bytes.NewReader(stream)), []byte(nil)
		for {
			k, body, next, err := readFrame(reader, buf)
			if err != nil {
				break
			}
			if buf = next; cap(buf) > maxFrame {
				t.Fatalf("a buffer of %d bytes", cap(buf))
			}
			switch k {
			case kindAck:
				_, _ = parseNumber(body)
			case kindHello:
				_, _ = parseHello(body)
			case kindState:
				_, _ = parseState(body)
			case kindResync, kindRefuse:
				_, _ = parseReason(body)
			default:
				if _, err := r.handle(k, body); err != nil && !errors.Is(err, errMalformed) {
					t.Fatalf("an error that does not say what it is: %v", err)
				}
			}
			if cap(r.ops) > 2*maxOps {
				t.Fatalf("room for %d records", cap(r.ops))
			}
		}
	})
}

// FuzzRecords: what is decoded is what would be encoded.
func FuzzRecords(f *testing.F) {
	b := newBook(testServices(2))
	for vip := range 4 {
		r := fullRecord(vip)
		f.Add(appendRecord(appendRecord(nil, &r, false, b), &r, true, b))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		ops, err := opsOf(body, b.pairs)
		if err != nil {
			return
		}
		var again []byte
		for i := range ops {
			if !encodable(&ops[i].record) {
				return // an IPv4 address written as an IPv6 one
			}
			again = appendRecord(again, &ops[i].record, ops[i].closed, b)
		}
		got, err := opsOf(again, b.pairs)
		if err != nil || !slices.Equal(got, ops) {
			t.Errorf("got %+v, %v; want %+v", got, err, ops)
		}
	})
}

// FuzzDictionary, FuzzHello, FuzzPass and FuzzState: decoded and encoded again,
// it means the same.
func FuzzDictionary(f *testing.F) {
	f.Add(appendBook(nil, newBook(testServices(3)))[frameHeader:])
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := parseBook(body)
		if err != nil {
			return
		}
		again, err := parseBook(appendBook(nil, b)[frameHeader:])
		if err != nil || !reflect.DeepEqual(again, b) {
			t.Errorf("got %+v, %v; want %+v", again, err, b)
		}
		differences(b, newBook(testServices(1)), "lb2")
	})
}

func FuzzHello(f *testing.F) {
	f.Add(appendHello(nil, hello{1, 3, "lb1"})[frameHeader:])
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := parseHello(body)
		if err != nil {
			return
		}
		if again, err := parseHello(appendHello(nil, h)[frameHeader:]); err != nil || again != h {
			t.Errorf("got %+v, %v; want %+v", again, err, h)
		}
		_, _ = agree(hello{minVersion, maxVersion, "lb1"}, h)
	})
}

func FuzzPass(f *testing.F) {
	f.Add(appendBegin(nil, begin{1, 2, true, "lost"})[frameHeader:])
	f.Add(appendEnd(nil, end{1, 2, []netip.Addr{testVIP(0), testVIP(1)}})[frameHeader:])
	f.Fuzz(func(t *testing.T, body []byte) {
		if b, err := parseBegin(body); err == nil {
			if again, err := parseBegin(appendBegin(nil, b)[frameHeader:]); err != nil || again != b {
				t.Errorf("got %+v, %v; want %+v", again, err, b)
			}
		}
		if e, err := parseEnd(body); err == nil {
			if again, err := parseEnd(appendEnd(nil, e)[frameHeader:]); err != nil || !reflect.DeepEqual(again, e) {
				t.Errorf("got %+v, %v; want %+v", again, err, e)
			}
		}
	})
}

func FuzzState(f *testing.F) {
	frame, _, _ := appendState(nil, State{Node: "lb1", Routers: []RouterState{{Name: "main", Addresses: []netip.Addr{testVIP(0)}}}})
	f.Add(frame[frameHeader:])
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := parseState(body)
		if err != nil {
			return
		}
		s.serves()
		if frame, _, err := appendState(nil, s); err != nil && len(body) < maxState/8 {
			t.Errorf("%v after %d bytes", err, len(frame))
		}
	})
}

// TestFrameTooLong: the length of a frame is refused before anything is
// allocated for it.
func TestFrameTooLong(t *testing.T) {
	for _, length := range []uint32{0, maxFrame + 1, math.MaxUint32} {
		head := binary.BigEndian.AppendUint32(nil, length)
		_, _, buf, err := readFrame(bufio.NewReader(bytes.NewReader(append(head, 1))), nil)
		if !errors.Is(err, errMalformed) || buf != nil {
			t.Errorf("length %d: %d bytes, %v", length, cap(buf), err)
		}
	}
}
