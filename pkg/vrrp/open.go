package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// Open checks the configuration, opens the sockets in the calling thread's
// network namespace, and takes off the interface what an earlier life of this
// program left of the virtual addresses there. The caller has to Close it.
func Open(c Config) (*Router, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("virtual router %s: %w", c.Name, err)
	}
	r, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("virtual router %s: %w", c.Name, err)
	}
	return r, nil
}

func open(c Config) (_ *Router, err error) {
	k, err := openKernel(c.Interface, c.ipv6())
	if err != nil {
		return nil, err
	}
	k.lifetime = c.lifetime()
	closers := []func() error{func() error { k.close(); return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(closers))
		}
	}()
	if err := c.chooseSource(k); err != nil {
		return nil, err
	}
	log := c.Log.With("router", c.Name)
	if err := clean(c, k, log); err != nil {
		return nil, err
	}
	if !c.ipv6() {
		adviseARP(c.Interface, log)
	}
	herald, err := openHerald(c)
	if err != nil {
		return nil, err
	}
	closers = append(closers, herald.close)
	socket, err := listen(c.Interface, k.index(), c.Source, len(c.Peers) > 0)
	if err != nil {
		return nil, err
	}
	closers = append(closers, socket.close)
	r := newRouter(c, socket, k, herald, bootClock)
	r.watch, r.sniff, r.closers = k.watch, herald.conflicts, closers
	return r, nil
}

// clean removes stale virtual addresses.
func clean(c Config, k *kernel, log *slog.Logger) error {
	for _, p := range c.Addresses {
		removed, err := k.remove(p.Addr())
		if err != nil {
			return err
		}
		if removed {
			log.Warn("removed a virtual address that an earlier run had left", "address", p, "interface", c.Interface)
		}
		other, err := k.elsewhere(p.Addr())
		if err != nil {
			return err
		}
		if other != "" {
			return fmt.Errorf("virtual address %v is already on interface %s", p.Addr(), other)
		}
	}
	return nil
}

// Close releases the sockets. Run must have returned, if it was called.
func (r *Router) Close() error { return closeAll(r.closers) }

// closeAll closes in reverse order.
func closeAll(closers []func() error) error {
	var errs []error
	for _, c := range slices.Backward(closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}
