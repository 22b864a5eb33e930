package flowsync

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rotationSteps returns the key files of a rotation, in order, and the names of
// the old and of the new key.
func rotationSteps(t testing.TB) (steps [][]byte, from, to string) {
	t.Helper()
	text, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	steps = [][]byte{text}
	for _, change := range []func([]byte) ([]byte, error){AddKey, PromoteKey, RetireKeys} {
		if text, err = change(text); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, text)
	}
	return steps, mustKey(t, steps[0]).Fingerprint(), mustKey(t, steps[3]).Fingerprint()
}

func mustKey(t testing.TB, text []byte) *Key {
	t.Helper()
	k, err := parseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRotationSteps(t *testing.T) {
	steps, from, to := rotationSteps(t)
	if from == to {
		t.Fatal("the new key is the old one")
	}
	for i, want := range [][]string{{from}, {from, to}, {to, from}, {to}} {
		if got := mustKey(t, steps[i]).Fingerprints(); !slices.Equal(got, want) {
			t.Errorf("step %d: keys %v, want %v", i, got, want)
		}
	}
}

// The two nodes are never in the same moment at the same step of a rotation.
// Each step links with itself and its neighbours, whoever is first, and each
// node shows the first key of its file. Who skips a step is refused where a
// key is shown that the other does not have.
func TestRotation(t *testing.T) {
	steps, _, _ := rotationSteps(t)
	for a := range steps {
		for b := range steps {
			ka, kb := mustKey(t, steps[a]), mustKey(t, steps[b])
			links := slices.Contains(ka.Fingerprints(), kb.Fingerprint()) && slices.Contains(kb.Fingerprints(), ka.Fingerprint())
			if distance := max(a-b, b-a); distance <= 1 != links {
				t.Fatalf("steps %d and %d: linked %v", a, b, links)
			}
			t.Run(fmt.Sprintf("%d with %d", a, b), func(t *testing.T) {
				ca, cb := testConfigs(t, newMemTable(), newMemTable())
				ca.Key, cb.Key = ka, kb
				la, _ := start(t, ca)
				lb, _ := start(t, cb)
				if !links {
					eventually(t, "one has refused the other's key", func() bool {
						return count(la.Status().Failures, FailureKey)+count(lb.Status().Failures, FailureKey) > 0
					})
					if la.Status().Connections+lb.Status().Connections > 0 {
						t.Error("they are linked")
					}
					return
				}
				synced(t, la, lb)
				for _, l := range []struct{ ours, theirs Status }{{la.Status(), lb.Status()}, {lb.Status(), la.Status()}} {
					if l.ours.PeerKey != l.theirs.Key || l.ours.Key != l.ours.Keys[0] || count(l.ours.Failures, FailureKey) > 0 {
						t.Errorf("shows %s of %v, sees %s, but the other shows %s", l.ours.Key, l.ours.Keys, l.ours.PeerKey, l.theirs.Key)
					}
				}
			})
		}
	}
}

// A pair goes through a rotation, one node after the other: each restart is
// followed by a link with all flows, and no key is ever refused.
func TestRotationInTurn(t *testing.T) {
	steps, _, to := rotationSteps(t)
	ca, cb := testConfigs(t, newMemTable(), newMemTable())
	ca.Key, cb.Key = mustKey(t, steps[0]), mustKey(t, steps[0])
	la, stopA := start(t, ca)
	lb, stopB := start(t, cb)
	synced(t, la, lb)
	refused := func(links ...*Link) (n uint64) {
		for _, l := range links {
			n += count(l.Status().Failures, FailureKey) + count(l.Status().Failures, FailureNoKey) + count(l.Status().Failures, FailureRefused)
		}
		return n
	}
	for i, text := range steps[1:] {
		stopA()
		ca.Key = mustKey(t, text)
		la, stopA = start(t, ca)
		synced(t, la, lb)
		if n := refused(la, lb); n > 0 {
			t.Errorf("step %d on the first node: %d refusals", i+1, n)
		}
		stopB()
		cb.Key = mustKey(t, text)
		lb, stopB = start(t, cb)
		synced(t, la, lb)
		if n := refused(la, lb); n > 0 {
			t.Errorf("step %d on both: %d refusals", i+1, n)
		}
	}
	if s := la.Status(); s.Key != to || s.PeerKey != to || len(s.Keys) != 1 {
		t.Errorf("in the end: %s of %v, the peer's %s", s.Key, s.Keys, s.PeerKey)
	}
}

// Several keys accept no more than those keys.
func TestRotationOtherKey(t *testing.T) {
	steps, _, _ := rotationSteps(t)
	for i, text := range steps {
		ca, cb := testConfigs(t, newMemTable(), newMemTable())
		ca.Key = mustKey(t, text)
		cb.Key, _ = testKey(t)
		la, _ := start(t, ca)
		lb, _ := start(t, cb)
		eventually(t, "the key is refused", func() bool { return count(la.Status().Failures, FailureKey) > 0 })
		if la.Status().Connections+lb.Status().Connections > 0 {
			t.Errorf("step %d: they are linked", i)
		}
	}
}

// Whoever has the certificate without its private key is not let in.
func TestRotationStolenCertificate(t *testing.T) {
	steps, _, _ := rotationSteps(t)
	ca, cb := testConfigs(t, newMemTable(), newMemTable())
	ca.Key = mustKey(t, steps[1])
	other, _ := testKey(t)
	stolen := *ca.Key
	stolen.certificates = slices.Clone(stolen.certificates)
	stolen.certificates[0].PrivateKey = other.certificates[0].PrivateKey
	cb.Key = &stolen
	la, _ := start(t, ca)
	lb, _ := start(t, cb)
	eventually(t, "both have failed", func() bool {
		return la.Status().LastError != "" && lb.Status().LastError != ""
	})
	if la.Status().Connections+lb.Status().Connections > 0 {
		t.Error("they are linked")
	}
}

func TestBadKeyFiles(t *testing.T) {
	steps, _, _ := rotationSteps(t)
	one, two := string(steps[0]), string(steps[1])
	mixed, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	cut := strings.Index(one, "-----BEGIN CERTIFICATE")
	private, certificate := one[:cut], one[cut:]
	many := steps[0]
	for range maxKeys - 1 {
		if many, err = AddKey(many); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(mustKey(t, many).Fingerprints()); n != maxKeys {
		t.Fatalf("%d keys", n)
	}
	for name, tc := range map[string]struct{ text, says string }{
		"empty":              {"", "there is no key in it"},
		"text":               {"secret", "there is no key in it"},
		"no certificate":     {private, "it has 1 private keys and 0 certificates; each key has one of either"},
		"no private key":     {certificate, "there is no key in it"},
		"twice the same":     {one + one, "key 2 of 2 is there twice"},
		"cut short":          {two[:len(two)-10], "a block in it is broken"},
		"broken within":      {strings.Replace(two, "-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\n!", 1), "a block in it is broken"},
		"other kind":         {one + "-----BEGIN X-----\n-----END X-----\n", `it has a block of the kind "X"`},
		"other certificate":  {private + string(mixed[bytes.Index(mixed, []byte("-----BEGIN CERTIFICATE")):]), "tls: private key does not match public key"},
		"second one is torn": {one + private + string(mixed[bytes.Index(mixed, []byte("-----BEGIN CERTIFICATE")):]), "key 2 of 2: tls: private key does not match public key"},
		"too many":           {string(many) + string(mixed), "it has 9 keys; 8 is the most"},
		"too long":           {one + strings.Repeat("\n", maxKeyFile), "it is longer than 65536 bytes"},
	} {
		if _, err := parseKey([]byte(tc.text)); err == nil || err.Error() != tc.says {
			t.Errorf("%s: %v, want %s", name, err, tc.says)
		}
		for _, change := range []func([]byte) ([]byte, error){AddKey, PromoteKey, RetireKeys} {
			if out, err := change([]byte(tc.text)); err == nil {
				t.Errorf("%s: changed to %q", name, out)
			}
		}
	}
	if _, err := AddKey(many); err == nil || err.Error() != "it has 9 keys; 8 is the most" {
		t.Errorf("one more than the most: %v", err)
	}
	if _, err := PromoteKey(steps[0]); err != errOneKey {
		t.Errorf("promoting the only key: %v", err)
	}
	path := filepath.Join(t.TempDir(), "long")
	if err := os.WriteFile(path, []byte(one+strings.Repeat("\n", maxKeyFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); err == nil {
		t.Error("a file that is too long is loaded")
	}
	// What stands between the blocks, and which of the two is first, is no matter.
	if k := mustKey(t, []byte("# ours\n"+certificate+"\n"+private+"# end\n")); k.Fingerprint() != mustKey(t, steps[0]).Fingerprint() {
		t.Error("comments make another key")
	}
}

// Whatever a key file is, it is refused, or it can be rotated.
func FuzzKeyFile(f *testing.F) {
	steps, _, _ := rotationSteps(f)
	for _, s := range steps {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parseKey(text)
		if err != nil {
			return
		}
		names := k.Fingerprints()
		if len(names) == 0 || len(names) > maxKeys {
			t.Fatalf("%d keys", len(names))
		}
		if len(names) == maxKeys {
			return
		}
		added, err := AddKey(text)
		if err != nil {
			t.Fatal(err)
		}
		now := mustKey(t, added).Fingerprints()
		if !slices.Equal(now[:len(names)], names) || len(now) != len(names)+1 {
			t.Fatalf("%v became %v", names, now)
		}
		promoted, err := PromoteKey(added)
		if err != nil {
			t.Fatal(err)
		}
		if got := mustKey(t, promoted).Fingerprints(); got[0] != now[len(names)] || len(got) != len(now) {
			t.Fatalf("%v became %v", now, got)
		}
		if retired, err := RetireKeys(promoted); err != nil || !slices.Equal(mustKey(t, retired).Fingerprints(), now[len(names):]) {
			t.Fatalf("retired: %v", err)
		}
	})
}
