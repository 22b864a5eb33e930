package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/doctor"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// preflight finds out whether the daemon can work here, without touching
// anything.
func preflight(cfg *config.Config) error {
	if err := doctor.Capabilities(); err != nil {
		return err
	}
	// It warns of what is merely slow when the program is loaded.
	if _, err := xdp.CheckKernel(); err != nil {
		return err
	}
	return doctor.Interface(cfg.Interface, sources(cfg))
}

// sources are the addresses that advertisements are sent from.
func sources(cfg *config.Config) []doctor.Router {
	var all []doctor.Router
	for _, r := range cfg.VirtualRouters {
		all = append(all, doctor.Router{Name: r.Name, Source: r.Source})
	}
	return all
}

// lockPins claims the directory of pins for this process until the file is
// closed or the process ends, however it ends: two daemons that steer one
// program would undo each other's work. It returns nil when there is no such
// directory yet.
func lockPins(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the pin directory: %w", err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another pgsteerd is running with the pin directory %s", path)
	} else if err != nil {
		err = fmt.Errorf("locking the pin directory %s: %w", path, err)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}
