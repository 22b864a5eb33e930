package xdp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Each step of an upgrade may be the last: packets go on meanwhile, and the
// next start makes it whole.
func TestInterruptedUpgrade(t *testing.T) {
	steps := len(new(Balancer).steps())
	for last := range steps + 1 {
		f := newFixture(t)
		c, b := f.connect(clientNumber(0))
		f.must(f.Close())
		cfg := f.config
		cfg.FlowTableSize, cfg.HalfOpenFlows = 1024, 128
		what := f.openUntil(cfg, last)
		if t.Failed() {
			return
		}
		f.onWire(c)
		f.onWire(b.answer(ack))
		second := f.connectOnWire(1)
		f.readerSees(2, what)
		f = open(t, cfg, f.ns)
		f.wantNoLeftovers()
		f.expect(c, "tx_forward")
		f.expect(b.answer(ack), "tx_reverse")
		f.expect(second, "tx_forward")
		f.wantCounted(2)
		if t.Failed() {
			t.Fatalf("interrupted after %s", what)
		}
		f.must(f.Close())
	}
}

// openUntil is Open that dies after some steps.
func (f *fixture) openUntil(cfg Config, steps int) (last string) {
	f.t.Helper()
	last = "nothing"
	inNamespace(f.t, f.ns, func() error {
		b, err := prepared(cfg)
		if err != nil {
			return err
		}
		for _, s := range b.steps()[:steps] {
			if err := s.do(); err != nil {
				return err
			}
			last = s.what
		}
		return b.Close()
	})
	return last
}

// readerSees wants the tools to see what the program on the interface uses.
func (f *fixture) readerSees(flows int, when string) {
	f.t.Helper()
	inNamespace(f.t, f.ns, func() error {
		r, err := OpenPins(f.config.PinPath)
		if err != nil {
			return err
		}
		defer r.Close()
		n := 0
		err = r.Flows(func(lb.Flow) bool { n++; return true })
		if n != flows {
			f.t.Errorf("a reader sees %d flows after %s, want %d", n, when, flows)
		}
		return err
	})
}

// Dying while the pins are renamed is no different.
func TestInterruptedCommit(t *testing.T) {
	const settled = 9 // the steps up to the commit
	for _, part := range []float64{0, 0.1, 0.5, 1} {
		f := newFixture(t)
		c, _ := f.connect(clientNumber(0))
		f.must(f.Close())
		cfg := f.config
		cfg.FlowTableSize = 1024
		f.openUntil(cfg, settled)
		names, err := newNames(cfg.PinPath)
		f.must(err)
		names = names[1:] // the marker, which goes last
		renamed := int(part * float64(len(names)))
		for _, name := range names[:renamed] {
			f.must(os.Rename(filepath.Join(cfg.PinPath, name), filepath.Join(cfg.PinPath, strings.TrimSuffix(name, newSuffix))))
		}
		second := f.connectOnWire(1)
		f.readerSees(2, "some names")
		f = open(t, cfg, f.ns)
		f.expect(c, "tx_forward")
		f.expect(second, "tx_forward")
		f.wantNoLeftovers()
		f.wantCounted(2)
		if t.Failed() {
			t.Fatalf("interrupted after %v", names[:renamed])
		}
		f.must(f.Close())
	}
}
