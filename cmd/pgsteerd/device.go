package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A device is the network interface that the daemon works on. The XDP program
// and the sockets belong to this very one and not to its name: when it goes
// away they are lost, and only a new start can get new ones.
type device struct {
	name   string
	index  uint32
	socket int // to ask the kernel through
}

// deviceInterval is how often the device is looked at. Nothing is served
// without it, so the only hurry is to be restarted when it is back.
const deviceInterval = 500 * time.Millisecond

func openDevice(name string) (*device, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket to watch %s: %w", name, err)
	}
	d := &device{name: name, socket: socket}
	if d.index, err = d.lookup(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// lookup returns the index of the interface that has the name now.
func (d *device) lookup() (uint32, error) {
	request, err := unix.NewIfreq(d.name)
	if err != nil {
		return 0, fmt.Errorf("looking up interface %s: %w", d.name, err)
	}
	if err := unix.IoctlIfreq(d.socket, unix.SIOCGIFINDEX, request); err != nil {
		return 0, fmt.Errorf("looking up interface %s: %w", d.name, err)
	}
	return request.Uint32(), nil
}

// check returns an error when the device is no longer the one that was opened.
func (d *device) check() error {
	index, err := d.lookup()
	if err != nil {
		return err
	}
	if index != d.index {
		return fmt.Errorf("interface %s was replaced: its number was %d and is %d", d.name, d.index, index)
	}
	return nil
}

// run watches until ctx ends, or fails when the device is gone.
func (d *device) run(ctx context.Context) error {
	tick := time.NewTicker(deviceInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := d.check(); err != nil {
				return err
			}
		}
	}
}

// Close releases the socket.
func (d *device) Close() error {
	if err := unix.Close(d.socket); err != nil {
		return fmt.Errorf("closing the socket that watches %s: %w", d.name, err)
	}
	return nil
}
