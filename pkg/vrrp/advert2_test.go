package vrrp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// golden2 is version 2; the first frame is what keepalived 2.2.7 puts on the wire.
var golden2 = []struct {
	name     string
	priority uint8
	auth     Secret
	frame    string
}{
	{"priority 101", 101, "", "21336501 0001b7bd c0a80164 00000000 00000000"},
	{"priority 100", 100, "", "21336401 0001b8bd c0a80164 00000000 00000000"},
	{"resignation", 0, "", "21330001 00011cbe c0a80164 00000000 00000000"},
	{"password", 101, "1111", "21336501 0101545b c0a80164 31313131 00000000"},
}

func TestGoldenFramesVersion2(t *testing.T) {
	for _, tc := range golden2 {
		t.Run(tc.name, func(t *testing.T) {
			a := Advertisement{51, tc.priority, time.Second, []netip.Addr{vip}}
			want := unhex(t, tc.frame)
			if got := a.Append2([]byte("head"), tc.auth); !bytes.Equal(got[4:], want) {
				t.Errorf("Append2 = %x, want %x", got[4:], want)
			}
			if got, err := Parse2(want, tc.auth); err != nil || !reflect.DeepEqual(got, a) {
				t.Errorf("Parse2 = %+v, %v; want %+v", got, err, a)
			}
		})
	}
}

func TestParse2Refuses(t *testing.T) {
	const good = "21336501 0001b7bd c0a80164 00000000 00000000"
	password := (&Advertisement{51, 101, time.Second, []netip.Addr{vip}}).Append2(nil, "12345678 and more")
	for _, tc := range []struct {
		name string
		msg  []byte
		auth Secret
		want Refusal
	}{
		{"nothing", nil, "", RefusedLength},
		{"version 3", reseal(unhex(t, "31336501 0001b7bd c0a80164 00000000 00000000")), "", RefusedVersion},
		{"type 2", reseal(unhex(t, "22336501 0001b7bd c0a80164 00000000 00000000")), "", RefusedType},
		{"no authentication data", reseal(unhex(t, "21336501 0001b7bd c0a80164")), "", RefusedLength},
		{"damaged", unhex(t, "21336601 0001b7bd c0a80164 00000000 00000000"), "", RefusedChecksum},
		{"no password, but we have one", unhex(t, good), "secret", RefusedAuth},
		{"a password, but we have none", password, "", RefusedAuth},
		{"another password", password, "12345670", RefusedAuth},
		{"the same first eight bytes", password, "12345678 or so", numRefusals},
		{"IPsec", reseal(unhex(t, "21336501 0201b7bd c0a80164 00000000 00000000")), "", RefusedAuth},
		{"data of no authentication", reseal(unhex(t, "21336501 0001b7bd c0a80164 31313131 00000000")), "", numRefusals},
		{"no address", reseal(unhex(t, "21336500 0001b7bd 00000000 00000000")), "", RefusedCount},
		{"interval 0", reseal(unhex(t, "21336501 0000b7bd c0a80164 00000000 00000000")), "", RefusedInterval},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse2(tc.msg, tc.auth)
			got := numRefusals
			if err != nil && !errors.As(err, &got) || got != tc.want {
				t.Errorf("Parse2: %v, want %v", err, tc.want)
			}
		})
	}
}

func TestSecretDoesNotShow(t *testing.T) {
	c := Config{Auth: "hunter2", HMAC: &HMAC{Keys: map[uint8]Secret{1: "hunter2"}}}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, c) + fmt.Sprintf(format, *c.HMAC); strings.Contains(s, "hunter") {
			t.Errorf("%s shows it: %s", format, s)
		}
	}
}

// version2Node changes a configuration to version 2 at a second.
func version2Node(c *Config) { c.Version, c.AdvertInterval = 2, 0 }

func TestRouterVersion2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, version2Node).run()
		elapse(500 * ms)
		b := newNode(t, &lan, node2, 100, version2Node).run()
		elapse(10 * time.Second)
		if !a.owns() || b.owns() {
			t.Fatal("the first and better node is not the active one")
		}
		if s := b.router.Snapshot(); s.Version != 2 || s.Peer.AdvertInterval != time.Second || s.Received < 5 {
			t.Errorf("snapshot of the backup: %+v", s)
		}
		began := time.Now()
		a.cancel()
		for !b.owns() && time.Since(began) < 5*time.Second {
			elapse(ms)
		}
		// The skew of priority 100 in version 2, RFC 3768 section 6.1.
		if took := time.Since(began); took < 600*ms || took > 612*ms {
			t.Errorf("take-over %v after the resignation, want 609 ms", took)
		}
		a.stop()
		b.stop()
	})
}

// TestRouterVersion2Mismatch holds that a version 2 router does not listen to
// whom RFC 3768 section 7.1 tells it to discard.
func TestRouterVersion2Mismatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, func(c *Config) { version2Node(c); c.Auth = "1111" }).run()
		elapse(5 * time.Second)
		better := Advertisement{51, 200, time.Second, []netip.Addr{vip}}
		slow := better
		slow.Interval = 2 * time.Second
		a.port.inject(
			packetOf(node2, node1, 255, better.Append(nil, ChecksumMessage, node2, node1)),
			packetOf(node2, node1, 255, better.Append2(nil, "")),
			packetOf(node2, node1, 255, slow.Append2(nil, "1111")),
		)
		elapse(ms)
		if !a.owns() {
			t.Error("what had to be discarded took the role away")
		}
		want := map[string]uint64{"version": 1, "auth": 1, "interval": 1}
		for _, c := range a.router.Snapshot().Refused {
			if c.Count != want[c.Reason] {
				t.Errorf("%s: %d refused, want %d", c.Reason, c.Count, want[c.Reason])
			}
		}
		a.port.inject(packetOf(node2, node1, 255, better.Append2(nil, "1111")))
		elapse(ms)
		if a.owns() {
			t.Error("a better router with the right password was not heeded")
		}
		a.stop()
	})
}

// TestRouterAnswersInThePeersForm begins with the form of RFC 9568 and changes
// to the peer's.
func TestRouterAnswersInThePeersForm(t *testing.T) {
	for _, multicast := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var lan fakeLAN
			change := func(c *Config) {
				if multicast {
					c.Peers = nil
				}
			}
			dst := node1
			if multicast {
				dst = groupV4
			}
			a := newNode(t, &lan, node1, 101, change).run()
			elapse(time.Second)
			peer := lan.plug(node2)
			last := func() ChecksumForm {
				t.Helper()
				packets, _, _ := peer.take()
				if len(packets) == 0 {
					t.Fatal("nothing sent")
				}
				d, err := parseDatagram(packets[len(packets)-1])
				if err != nil {
					t.Fatal(err)
				}
				_, form, err := Parse(d.payload, d.src, d.dst)
				if err != nil {
					t.Fatal(err)
				}
				return form
			}
			elapse(200 * ms)
			if got := last(); got != ChecksumMessage {
				t.Errorf("at first: %v", got)
			}
			for _, form := range []ChecksumForm{ChecksumPseudo, ChecksumMessage} {
				worse := Advertisement{51, 100, 100 * ms, []netip.Addr{vip}}
				a.port.inject(packetOf(node2, dst, 255, worse.Append(nil, form, node2, dst)))
				elapse(5 * ms) // an answer out of turn comes no sooner after another
				if got := last(); got != form {
					t.Errorf("the peer's form is %v, the answer's %v", form, got)
				}
			}
			if strings.Contains(a.log.String(), "another form of checksum") {
				t.Error("a warning of what needs no attention")
			}
			a.stop()
		})
	}
}
