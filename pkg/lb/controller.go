package lb

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Controller holds the desired state and tells the datapath what changes. A
// backend's state follows from two things that are kept apart: what its checks
// say, and what the operator says. It is safe for concurrent use.
type Controller struct {
	dp   Datapath
	log  *slog.Logger
	now  func() time.Time
	wake chan struct{} // token: Run has to look at the deadlines again

	saving sync.Mutex // held while orders are kept, before mu

	mu       sync.Mutex
	backends []*backend // in the order of configuration
	keep     func([]Order) error
	restored []Order // of an earlier life, until SetServices
	unsaved  error   // of the last keep
}

// backend is a backend with all that is known of it.
type backend struct {
	service Service // without its backends
	config  Backend // as SetServices was given it
	order   Order
	healthy bool
	health  string // why
	told    Backend

	state       State
	since       time.Time
	reason      string
	transitions uint64
	downtime    time.Duration

	deadline time.Time // of the next reset for the order's deadline; zero: none is left to do
	passed   bool      // the first one is done
	retry    time.Time // of a reset that failed; zero: none did
}

// NewController returns a controller without services.
func NewController(dp Datapath, log *slog.Logger) *Controller {
	return &Controller{dp: dp, log: log, now: time.Now, wake: make(chan struct{}, 1)}
}

// Restore takes the orders of an earlier life, which the next SetServices puts
// in force, and what keeps those to come: keep is given all that are in force
// whenever they change. It is called before SetServices.
func (c *Controller) Restore(orders []Order, keep func([]Order) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restored, c.keep = orders, keep
}

// SetServices replaces the configuration. The State of the backends given is
// ignored: one that is known keeps its state and the operator's word, a new one
// starts Down.
func (c *Controller) SetServices(services []Service) error {
	forgot, err := c.setServices(services)
	if err != nil {
		return err
	}
	if forgot {
		c.save()
	}
	c.wakeRun()
	return nil
}

// setServices reports whether orders were forgotten, because their backends are
// gone.
func (c *Controller) setServices(services []Service) (forgot bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next []*backend
	desired := make([]Service, len(services))
	for i, s := range services {
		desired[i] = s
		desired[i].Backends = make([]Backend, len(s.Backends))
		for j, config := range s.Backends {
			b := c.adopt(s.Name, config)
			b.service, b.config = s, config
			b.service.Backends = nil
			b.told = b.order.apply(config, b.state)
			desired[i].Backends[j] = b.told
			next = append(next, b)
		}
	}
	if err := c.dp.SetServices(desired); err != nil {
		return false, fmt.Errorf("configuring the datapath: %w", err)
	}
	forgot = c.forgetOrders(next)
	c.backends = next
	return forgot, nil
}

// adopt returns a copy of what is known of a backend, or a new one, which is
// down until its first check. The caller holds mu.
func (c *Controller) adopt(service string, config Backend) *backend {
	if b := c.find(service, config.Name); b != nil && b.config.Addr == config.Addr {
		known := *b
		return &known
	}
	b := &backend{
		order:  Order{Service: service, Backend: config.Name, Addr: config.Addr},
		health: "not checked yet", since: c.now(),
	}
	for _, o := range c.restored {
		if o.Service == service && o.Backend == config.Name && o.Addr == config.Addr {
			b.order = o
			b.setDeadline(&o)
			c.log.Info("the operator's word is still in force", append(b.names(), orderAttrs(&o)...)...)
		}
	}
	b.state = effective(b.order.Admin, false)
	b.reason = b.why(b.state)
	return b
}

// forgetOrders reports whether orders are left over that are for none of the
// backends in next. The caller holds mu.
func (c *Controller) forgetOrders(next []*backend) (changed bool) {
	old := slices.Clone(c.restored)
	for _, b := range c.backends {
		if !b.order.empty() {
			old = append(old, b.order)
		}
	}
	c.restored = nil
	for _, o := range old {
		there := slices.ContainsFunc(next, func(b *backend) bool {
			return b.order.Service == o.Service && b.order.Backend == o.Backend && b.order.Addr == o.Addr
		})
		if !there {
			changed = true
			c.log.Warn("forgot the operator's word about a backend that is no longer configured",
				append([]any{"service", o.Service, "backend", o.Backend, "address", o.Addr}, orderAttrs(&o)...)...)
		}
	}
	return changed
}

// SetHealth takes the result of a health check's rise and fall. One that does
// not change the state may still say why it is so. A new state is kept only if
// the datapath took it.
func (c *Controller) SetHealth(service, backend string, up bool, reason string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.find(service, backend)
	if b == nil {
		return fmt.Errorf("%w: %s/%s", ErrUnknownBackend, service, backend)
	}
	was := b.health
	b.health = reason
	if err := c.move(b, b.order, up, "health check"); err != nil {
		b.health = was
		return err
	}
	return nil
}

// move brings a backend to what the operator's word and its health make of it.
// It is the one place where a state changes. The datapath is told first, and
// nothing changes when it refuses. The caller holds mu.
func (c *Controller) move(b *backend, order Order, healthy bool, by string) error {
	state := effective(order.Admin, healthy)
	if row := order.apply(b.config, state); row != b.told {
		if err := c.dp.SetBackend(b.service.Name, row); err != nil {
			return fmt.Errorf("setting %s/%s %s: %w", b.service.Name, b.config.Name, state, err)
		}
		b.told = row
	}
	if !sameTime(order.Deadline, b.order.Deadline) {
		b.setDeadline(&order)
	}
	from, now := b.state, c.now()
	b.order, b.healthy = order, healthy
	b.reason = b.why(state)
	if from == state {
		return nil
	}
	served := from == Up || from == Draining
	switch {
	case state == Down && served:
		b.transitions++
	case from == Down:
		b.downtime += now.Sub(b.since)
	}
	c.log.Info("backend changed", append(b.names(), "from", from, "to", state, "reason", b.reason, "by", by)...)
	b.state, b.since = state, now
	if state == Up {
		b.retry = time.Time{}
	}
	if served && (state == Down || state == Maintenance) && b.service.ResetOnDown {
		c.resetFlows(b)
	}
	c.warnIfNoneUp(b.service.Name, from)
	return nil
}

// ResetDown has the flows of every backend reset that is down: this node has
// taken over from another one, which may not have come to that.
func (c *Controller) ResetDown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.backends {
		if (b.state == Down || b.state == Maintenance) && b.service.ResetOnDown {
			c.resetFlows(b)
		}
	}
}

// why says for what reason the backend is in that state.
func (b *backend) why(s State) string {
	if s == Draining || s == Maintenance {
		return fmt.Sprintf("set %s by %s", b.order.Admin, b.order.By)
	}
	return b.health
}

// warnIfNoneUp says so when the last backend of a service that took new flows
// takes no more. The caller holds mu.
func (c *Controller) warnIfNoneUp(service string, from State) {
	up := slices.ContainsFunc(c.backends, func(b *backend) bool { return b.service.Name == service && b.state == Up })
	if from == Up && !up {
		c.log.Warn("no backend takes new connections", "service", service)
	}
}

// names are a backend's attributes in the log.
func (b *backend) names() []any {
	return []any{"service", b.order.Service, "backend", b.order.Backend}
}

// find returns nil when there is no such backend. The caller holds mu.
func (c *Controller) find(service, backend string) *backend {
	for _, b := range c.backends {
		if b.service.Name == service && b.config.Name == backend {
			return b
		}
	}
	return nil
}
