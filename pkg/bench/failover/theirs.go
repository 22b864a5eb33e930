package failover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pgsteer/pgsteer/pkg/bench/classic"
	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// Where the classic stack answers, and HAProxy's page on each node.
const (
	classicAddress = "192.168.1.200:5432"
	statsPort      = 8404
)

// readyLimit bounds the wait for an answer through an HAProxy that was started.
const readyLimit = 30 * time.Second

// theirs is the classic stack: keepalived and HAProxy on the lab's two spare
// hosts. It has no priority over other processes, because its units give it none.
type theirs struct {
	lab   *lab.Lab
	nodes [2]*node
	vip   netip.Addr
}

// node is one of its machines.
type node struct {
	host       string
	address    netip.Addr
	pidFile    string // of HAProxy, read by keepalived's check
	haproxy    *process
	keepalived *process
	trash      []string // what a killed keepalived leaves and would not start over
	netlink    *netlink.Handle
	card       netlink.Link
}

// startTheirs starts the classic stack. Its files are in dir.
func startTheirs(ctx context.Context, l *lab.Lab, dir string) (*theirs, error) {
	service := netip.MustParseAddrPort(classicAddress)
	t := &theirs{lab: l, vip: service.Addr()}
	for i, host := range []string{lab.Spare1, lab.Spare2} {
		n, err := newNode(l, dir, host, i, service)
		if err != nil {
			return nil, errors.Join(err, t.stop())
		}
		t.nodes[i] = n
		if err := t.startNode(ctx, n); err != nil {
			return nil, errors.Join(err, t.stop())
		}
	}
	return t, nil
}

// newNode writes what is read on a node: i is 0 for the preferred one.
func newNode(l *lab.Lab, dir, host string, i int, service netip.AddrPort) (*node, error) {
	haproxy, err := classic.Program("haproxy")
	if err != nil {
		return nil, err
	}
	keepalived, err := classic.Program("keepalived")
	if err != nil {
		return nil, err
	}
	n := &node{host: host}
	if n.address, err = lab.Address(host); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, host+"-"+name) }
	n.pidFile = file("haproxy.pid")
	// A wildcard: the backup has not the address, and must listen for the day
	// when it has.
	all := netip.IPv4Unspecified()
	haproxyConfig, err := classic.HAProxyConfig(netip.AddrPortFrom(all, service.Port()), netip.AddrPortFrom(all, statsPort))
	if err != nil {
		return nil, err
	}
	k := classic.Keepalived{
		Node: host, State: []string{"MASTER", "BACKUP"}[i], Priority: []int{101, 100}[i],
		VIP: netip.PrefixFrom(service.Addr(), service.Addr().BitLen()), Check: file("check"),
	}
	keepalivedConfig, err := k.Config()
	if err != nil {
		return nil, err
	}
	// By the number of the process: its name is that of the other node's too.
	check := fmt.Appendf(nil, "#!/bin/sh\nkill -0 \"$(cat %s)\"\n", n.pidFile)
	err = errors.Join(
		os.WriteFile(file("haproxy.cfg"), haproxyConfig, 0o644),
		os.WriteFile(file("keepalived.conf"), keepalivedConfig, 0o644),
		os.WriteFile(k.Check, check, 0o755))
	if err != nil {
		return nil, fmt.Errorf("writing the configuration of %s: %w", host, err)
	}
	// In the foreground, and HAProxy as one process.
	n.haproxy = &process{host: host, log: file("haproxy.log"), argv: []string{haproxy, "-db", "-f", file("haproxy.cfg")}}
	n.trash = []string{file("keepalived.pid"), file("vrrp.pid")}
	n.keepalived = &process{host: host, log: file("keepalived.log"), argv: []string{
		keepalived, "--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file", file("keepalived.conf"),
		"--pid", n.trash[0], "--vrrp_pid", n.trash[1],
	}}
	err = l.Do(host, func() (err error) {
		if n.netlink, err = netlink.NewHandle(); err != nil {
			return fmt.Errorf("opening netlink on %s: %w", host, err)
		}
		if n.card, err = n.netlink.LinkByName("eth0"); err != nil {
			n.netlink.Close()
			return fmt.Errorf("finding the network card of %s: %w", host, err)
		}
		return nil
	})
	return n, err
}

func (t *theirs) name() string            { return peer }
func (t *theirs) address() netip.AddrPort { return netip.MustParseAddrPort(classicAddress) }
func (t *theirs) hosts() []string         { return []string{t.nodes[0].host, t.nodes[1].host} }

// holds looks for the address on a node's network card, since the kernel answers
// for what is there.
func (t *theirs) holds(i int) (bool, error) {
	n := t.nodes[i]
	addresses, err := n.netlink.AddrList(n.card, netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("listing the addresses of %s: %w", n.host, err)
	}
	for _, a := range addresses {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok && addr == t.vip {
			return true, nil
		}
	}
	return false, nil
}

// kill kills all that a balancer's machine runs, keepalived with its children.
func (t *theirs) kill(ctx context.Context) error {
	n := t.nodes[0]
	err := errors.Join(n.keepalived.signal(syscall.SIGKILL), n.haproxy.signal(syscall.SIGKILL))
	return errors.Join(err, n.keepalived.await(ctx), n.haproxy.await(ctx))
}

func (t *theirs) freeze(context.Context) error {
	n := t.nodes[0]
	return errors.Join(n.keepalived.signal(syscall.SIGSTOP), n.haproxy.signal(syscall.SIGSTOP))
}

func (t *theirs) thaw(context.Context) error {
	n := t.nodes[0]
	return errors.Join(n.haproxy.signal(syscall.SIGCONT), n.keepalived.signal(syscall.SIGCONT))
}

// resign asks keepalived alone to end, as `systemctl stop keepalived` does.
func (t *theirs) resign(ctx context.Context) error {
	n := t.nodes[0]
	return errors.Join(n.keepalived.ask(syscall.SIGTERM), n.keepalived.await(ctx))
}

// halt ends what a node runs, in the order in which it does no harm.
func (t *theirs) halt(ctx context.Context) error {
	if err := t.resign(ctx); err != nil {
		return err
	}
	n := t.nodes[0]
	return errors.Join(n.haproxy.ask(syscall.SIGTERM), n.haproxy.await(ctx))
}

// start starts what does not run on the first node and lets go on what hangs.
func (t *theirs) start(ctx context.Context) error {
	if err := t.thaw(ctx); err != nil {
		return err
	}
	return t.startNode(ctx, t.nodes[0])
}

func (t *theirs) startNode(ctx context.Context, n *node) error {
	if !n.haproxy.alive() {
		if err := n.haproxy.start(ctx, t.lab); err != nil {
			return err
		}
		if err := os.WriteFile(n.pidFile, []byte(strconv.Itoa(n.haproxy.pid())), 0o644); err != nil {
			return fmt.Errorf("writing the process id of haproxy: %w", err)
		}
		if err := t.answers(ctx, n); err != nil {
			return err
		}
	}
	if n.keepalived.alive() {
		return nil
	}
	for _, file := range n.trash {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing what a killed keepalived left: %w", err)
		}
	}
	return n.keepalived.start(ctx, t.lab)
}

// answers waits until a node's HAProxy lets clients through.
func (t *theirs) answers(ctx context.Context, n *node) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("no answer after %v", readyLimit))
	defer cancel()
	address := netip.AddrPortFrom(n.address, t.address().Port())
	try := load.Answer(t.lab.DialContext(lab.Client), address.String(), lab.Database, lab.Database)
	if err := until(ctx, func(ctx context.Context) error { return try(ctx) }); err != nil {
		return fmt.Errorf("waiting for haproxy on %s: %w\n%s", n.host, err, n.haproxy.tail())
	}
	return nil
}

// ready waits until both nodes can do their work.
func (t *theirs) ready(ctx context.Context) error {
	for _, n := range t.nodes {
		if err := t.answers(ctx, n); err != nil {
			return err
		}
		if !n.keepalived.alive() {
			return fmt.Errorf("keepalived on %s has ended:\n%s", n.host, n.keepalived.tail())
		}
	}
	return nil
}

// stop ends all that was started. The addresses go with the lab.
func (t *theirs) stop() error {
	var errs []error
	for _, n := range t.nodes {
		if n == nil {
			continue
		}
		for _, p := range []*process{n.keepalived, n.haproxy} {
			errs = append(errs, p.signal(syscall.SIGKILL), p.await(context.Background()))
		}
		n.netlink.Close()
	}
	return errors.Join(errs...)
}
