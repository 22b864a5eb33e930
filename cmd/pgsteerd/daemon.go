package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
	"github.com/pgsteer/pgsteer/pkg/stats"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// A balancerDaemon is the parts of the daemon and what ties them together.
type balancerDaemon struct {
	cfg     *config.Config
	log     *slog.Logger
	started time.Time

	balancer   *xdp.Balancer
	controller *lb.Controller
	checker    *health.Checker
	routers    []*vrrp.Router
	sync       *replication     // nil when there is no other node
	notifier   *notify.Notifier // nil when nobody is told
	stats      *stats.Server
	admin      *admin.Server  // nil when another process has the socket
	runtime    *admin.Runtime // nil when there is none, or another process has the socket
	device     *device
	supervisor *supervisor
	notify     func(string)

	closers []io.Closer // in the order of opening
}

// open acquires everything that the daemon needs. It begins with what touches
// nothing (the stats port, the lock), so that a second daemon, or one that
// cannot run, leaves the first in peace.
func open(cfg *config.Config, log *slog.Logger) (_ *balancerDaemon, err error) {
	d := &balancerDaemon{cfg: cfg, log: log, started: time.Now(), notify: newNotifier(log)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	watchdog, err := watchdogInterval()
	if err != nil {
		return nil, err
	}
	d.supervisor = &supervisor{log: log, notify: d.notify, watchdog: watchdog}
	if d.stats, err = stats.Open(stats.Config{Listen: cfg.Stats.Listen, Snapshot: d.snapshot, Log: log}); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.stats)
	if d.device, err = openDevice(cfg.Interface); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.device)
	if err := d.openBalancer(); err != nil {
		return nil, err
	}
	if err := d.openController(); err != nil {
		return nil, err
	}
	d.checker = health.New(targets(cfg), log)
	if err := d.openSync(); err != nil {
		return nil, err
	}
	if err := d.openRouters(); err != nil {
		return nil, err
	}
	if err := d.openNotifier(); err != nil {
		return nil, err
	}
	return d, nil
}

// openBalancer locks the pins and loads the XDP program.
func (d *balancerDaemon) openBalancer() error {
	lock, err := lockPins(d.cfg.XDP.PinPath)
	if err != nil {
		return err
	}
	if lock != nil {
		d.closers = append(d.closers, lock)
	}
	if d.balancer, err = xdp.Open(balancerConfig(d.cfg, d.log)); err != nil {
		return err
	}
	d.closers = append(d.closers, d.balancer)
	if lock != nil {
		return nil
	}
	// The directory did not exist before.
	if lock, err = lockPins(d.cfg.XDP.PinPath); err != nil {
		return err
	}
	if lock == nil {
		return fmt.Errorf("the pin directory %s vanished", d.cfg.XDP.PinPath)
	}
	d.closers = append(d.closers, lock)
	return nil
}

// openController restores what operators have said in earlier lives, tells the
// datapath its addresses and services, and listens for what operators say next.
func (d *balancerDaemon) openController() error {
	d.controller = lb.NewController(carefulDatapath{d.balancer, d.isolated}, d.log)
	orders, err := loadOrders(d.cfg.Admin.StateFile, d.log)
	if err != nil {
		return err
	}
	// The services' addresses are among the virtual ones.
	if err := d.balancer.SetVIPs(vips(d.cfg)); err != nil {
		return fmt.Errorf("configuring the virtual addresses: %w", err)
	}
	d.controller.Restore(orders, func(orders []lb.Order) error { return admin.SaveOrders(d.cfg.Admin.StateFile, orders) })
	if err := d.controller.SetServices(services(d.cfg)); err != nil {
		return err
	}
	d.admin, err = admin.Open(admin.Config{
		Socket: d.cfg.Admin.Socket, Controller: d.controller, Routers: d.movable, Replication: d.link, PeerHistory: d.peerHistory,
		Notifier: d.teller, Log: d.log,
	})
	if errors.Is(err, admin.ErrInUse) {
		// The locks have shown that it is not one that serves this interface's
		// tables. It is better to balance without orders than not at all.
		d.log.Error("this daemon takes no orders; set admin.socket to a path of its own", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	d.closers = append(d.closers, d.admin)
	return d.openRuntime()
}

// openRuntime opens the socket that answers as HAProxy's does.
func (d *balancerDaemon) openRuntime() (err error) {
	if d.cfg.Admin.HAProxySocket == "" {
		return nil
	}
	d.runtime, err = admin.OpenRuntime(admin.RuntimeConfig{
		Socket: d.cfg.Admin.HAProxySocket, Controller: d.controller, Shows: stats.Runtime{Snapshot: d.snapshot}, Log: d.log,
	})
	if errors.Is(err, admin.ErrInUse) {
		d.log.Error("nothing answers as HAProxy does; set admin.haproxy_socket to a path of its own", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	d.closers = append(d.closers, d.runtime)
	return nil
}

// movable returns the virtual routers for the admin socket. Like link it is
// called only while the daemon runs, when all of them are open.
func (d *balancerDaemon) movable() []admin.Router {
	var all []admin.Router
	for _, r := range d.routers {
		all = append(all, r)
	}
	return all
}

// link returns the link to the other node, nil if there is none.
func (d *balancerDaemon) link() admin.Replication {
	if d.sync == nil {
		return nil // not a nil *flowsync.Link, which would be a link
	}
	return d.sync.link
}

// teller returns what tells people, nil if nobody is told.
func (d *balancerDaemon) teller() admin.Notifier {
	if d.notifier == nil {
		return nil // not a nil *notify.Notifier, which would be one
	}
	return d.notifier
}

// loadOrders reads what operators have said. A file that makes no sense is set
// aside, loudly: it must not keep the balancer from working.
func loadOrders(path string, log *slog.Logger) ([]lb.Order, error) {
	orders, err := admin.LoadOrders(path)
	if !errors.Is(err, admin.ErrBadOrders) {
		return orders, err
	}
	aside, aerr := admin.SetAside(path)
	if aerr != nil {
		return nil, errors.Join(err, aerr)
	}
	log.Error("what operators have said is lost: every backend is ready, with its configured weight and limit",
		"error", err, "set_aside", aside)
	return nil, nil
}

// openRouters opens the virtual routers, each with its fence.
func (d *balancerDaemon) openRouters() error {
	var moved func()
	if d.sync != nil {
		moved = d.sync.link.Kick
	}
	for _, c := range d.cfg.VirtualRouters {
		f := newFence(d.balancer, c.Addresses, d.sync != nil, moved, d.log)
		rc, err := d.routerConfig(c, f)
		if err != nil {
			return fmt.Errorf("virtual router %s: %w", c.Name, err)
		}
		r, err := vrrp.Open(rc)
		if err != nil {
			return err
		}
		d.closers = append(d.closers, r)
		d.routers = append(d.routers, r)
		d.supervisor.add(r.Snapshot, f)
	}
	d.supervisor.isolated, d.supervisor.checkAll, d.supervisor.resetDown = d.isolated, d.checkAll, d.controller.ResetDown
	if d.sync != nil {
		d.sync.routers = d.routers
	}
	return nil
}

// logTables says how large the tables are, which is decided for as long as they
// are pinned.
func (d *balancerDaemon) logTables() error {
	s, err := d.balancer.Stats()
	if err != nil {
		return fmt.Errorf("reading the tables: %w", err)
	}
	// A flow has two entries.
	d.log.Info("tables", "flows", s.Audit.Capacity/2, "half_open_flows", d.cfg.XDP.HalfOpenFlows,
		"memory", fmt.Sprintf("%.1f MiB", float64(s.Audit.Memory)/(1<<20)))
	return nil
}

// close releases everything in the opposite order. The XDP program stays
// attached.
func (d *balancerDaemon) close() error {
	var errs []error
	for _, c := range slices.Backward(d.closers) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// run serves until ctx ends. The virtual routers stop first: they give the
// addresses to another node while everything else still works.
func (d *balancerDaemon) run(ctx context.Context) error {
	stopping := context.AfterFunc(ctx, func() {
		d.log.Info("stopping: giving up the virtual addresses")
		d.notify(sd.SdNotifyStopping)
	})
	defer stopping()

	var routers []part
	for i, r := range d.routers {
		routers = append(routers, part{"virtual router " + d.cfg.VirtualRouters[i].Name, d.thenDrain(r.Run)})
	}
	base := []part{
		{"the datapath", d.balancer.Run},
		{"the health checks", d.checker.Run},
		{"the controller", d.controller.Run},
		{"the steering", d.steer},
		{"the passive checks", newPassive(d.balancer.Stats, d.checker.Nudge, d.log).run},
		{"the stats server", d.stats.Run},
		{"the supervisor", d.supervisor.run},
		{"the interface watch", d.device.run},
		{"the tracker", d.newTracker().run},
		{"the signal handler", d.ignoreHangup},
	}
	if d.admin != nil {
		base = append(base, part{"the admin socket", d.admin.Run})
	}
	if d.runtime != nil {
		base = append(base, part{"the runtime socket", d.runtime.Run})
	}
	if d.sync != nil {
		base = append(base, part{"the replication", d.sync.run})
	}
	if d.notifier != nil {
		base = append(base, part{"the notifications", d.notifier.Run})
	}
	return runParts(ctx, routers, base)
}

// checkAll has every backend checked now.
func (d *balancerDaemon) checkAll() {
	for _, t := range d.checker.Snapshot() {
		d.checker.Nudge(t.Service, t.Backend)
	}
}

// thenDrain has the other node know of the connections that were opened until a
// virtual router gave its addresses up.
func (d *balancerDaemon) thenDrain(run func(context.Context) error) func(context.Context) error {
	if d.sync == nil {
		return run
	}
	return func(ctx context.Context) error {
		err := run(ctx)
		if drained := d.sync.drain(ctx); drained != nil && !errors.Is(drained, flowsync.ErrNotConnected) {
			d.log.Warn("connections may be lost", "error", drained)
		}
		return err
	}
}

// steer hands what the health checks find to the controller.
func (d *balancerDaemon) steer(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-d.checker.Transitions():
			if err := d.controller.SetHealth(t.Service, t.Backend, t.Up, t.Reason); err != nil {
				return err
			}
		}
	}
}

// ignoreHangup answers SIGHUP, which would end the process otherwise.
func (d *balancerDaemon) ignoreHangup(ctx context.Context) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
			d.log.Warn("ignoring SIGHUP: the configuration is read only at the start; restart to change it")
		}
	}
}

// snapshot gathers what the parts know. It is called by the stats server only
// while it runs, when all of them are open.
func (d *balancerDaemon) snapshot() stats.Snapshot {
	s := stats.Snapshot{
		Node:      d.cfg.Node,
		Interface: d.cfg.Interface,
		Version:   version(),
		PID:       os.Getpid(),
		Started:   d.started,
		Backends:  d.controller.Snapshot(),
		Checks:    d.checker.Snapshot(),
	}
	s.Datapath, s.DatapathErr = d.balancer.Stats()
	for _, r := range d.routers {
		s.Routers = append(s.Routers, r.Snapshot())
	}
	if d.sync != nil {
		status := d.sync.link.Status()
		s.Sync = &status
	}
	if d.notifier != nil {
		s.Notify = d.notifier.Status()
	}
	s.Now = time.Now()
	return s
}
