package lb

import (
	"fmt"
	"time"
)

// Change does what an operator says about one backend; by is who says so. The
// error matches ErrUnknownBackend, ErrBadChange or ErrNotPossible, or is the
// datapath's; nothing has changed then.
func (c *Controller) Change(service, backend string, change Change, by string) (BackendStatus, error) {
	b, changed, err := c.change(service, backend, change, by)
	if err != nil {
		return BackendStatus{}, err
	}
	if changed {
		c.save()
		c.wakeRun()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status(b), nil
}

func (c *Controller) change(service, backend string, change Change, by string) (b *backend, changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b = c.find(service, backend); b == nil {
		return nil, false, fmt.Errorf("%w: %s/%s", ErrUnknownBackend, service, backend)
	}
	order, err := b.order.after(change, b.config, b.service.DrainTimeout, c.now())
	if err != nil || order.same(&b.order) {
		return b, false, err
	}
	order.By, order.At = by, c.now()
	if err := c.move(b, order, b.healthy, by); err != nil {
		return nil, false, err
	}
	c.log.Info("the operator has changed a backend", append(b.names(), orderAttrs(&order)...)...)
	return b, true, nil
}

// orderAttrs is what an order says, for the log.
func orderAttrs(o *Order) []any {
	attrs := []any{"by", o.By, "admin_state", o.Admin}
	if o.Deadline != nil {
		attrs = append(attrs, "deadline", o.Deadline.Format(time.RFC3339))
	}
	if o.Weight != nil {
		attrs = append(attrs, "weight", *o.Weight)
	}
	if o.MaxConnections != nil {
		attrs = append(attrs, "max_connections", *o.MaxConnections)
	}
	return attrs
}

// save has the orders in force kept. What cannot be kept is in force all the
// same: an operator who drains a backend on a full disk needs it drained. A disk
// may take its time, which holds nobody up but other operators.
func (c *Controller) save() {
	c.saving.Lock()
	defer c.saving.Unlock()
	keep, orders := c.orders()
	if keep == nil {
		return
	}
	err := keep(orders)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.log.Error("the operator's word would not outlive this process", "error", err)
	case c.unsaved != nil:
		c.log.Info("the operator's word is kept again")
	}
	c.unsaved = err
}

// orders returns those in force, and what keeps them.
func (c *Controller) orders() (keep func([]Order) error, orders []Order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.backends {
		if !b.order.empty() {
			orders = append(orders, b.order)
		}
	}
	return c.keep, orders
}
