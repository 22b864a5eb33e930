package connect

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// meter tells how much CPU time the lab's balancers take: their XDP programs,
// as the kernel accounts for them, and their daemons. The accounting itself
// costs each packet two readings of the clock while it is on.
type meter struct {
	accounting io.Closer
	programs   []*ebpf.Program
	daemons    []int // process ids
}

func newMeter(l *lab.Lab) (m *meter, err error) {
	m = &meter{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.accounting, err = ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME)); err != nil {
		return m, fmt.Errorf("having the run time of programs accounted for: %w", err)
	}
	for _, host := range lab.Balancers() {
		var p *ebpf.Program
		err := l.Do(host, func() (err error) {
			p, err = attached("eth0")
			return err
		})
		if err != nil {
			return m, fmt.Errorf("%s: %w", host, err)
		}
		m.programs = append(m.programs, p)
	}
	status, err := lab.GetStatus(l.Name())
	if err != nil {
		return m, err
	}
	for _, p := range status.Processes {
		if slices.Contains(lab.Balancers(), p.Host) {
			m.daemons = append(m.daemons, p.PID)
		}
	}
	return m, nil
}

// attached opens the XDP program on a network card.
func attached(card string) (*ebpf.Program, error) {
	link, err := netlink.LinkByName(card)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", card, err)
	}
	if link.Attrs().Xdp == nil || !link.Attrs().Xdp.Attached {
		return nil, fmt.Errorf("no XDP program is on %s", card)
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(link.Attrs().Xdp.ProgId))
	if err != nil {
		return nil, fmt.Errorf("opening the XDP program: %w", err)
	}
	return p, nil
}

// time returns what all of them have taken so far.
func (m *meter) time() (time.Duration, error) {
	var total time.Duration
	for _, p := range m.programs {
		stats, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("reading the run time of an XDP program: %w", err)
		}
		total += stats.Runtime
	}
	for _, pid := range m.daemons {
		t, err := processTime(pid)
		if err != nil {
			return 0, err
		}
		total += t
	}
	return total, nil
}

// Close ends the accounting.
func (m *meter) Close() error {
	var errs []error
	if m.accounting != nil {
		errs = append(errs, m.accounting.Close())
	}
	for _, p := range m.programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
