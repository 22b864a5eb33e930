package main

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/pgsteer/pgsteer/pkg/config/bouncer"
	"github.com/pgsteer/pgsteer/pkg/pooler"
)

// reloader gets the configuration anew while the pooler runs.
type reloader struct {
	log *slog.Logger
	out *logs

	mu     sync.Mutex
	loader *bouncer.Loader
}

// reread reads the files again.
func (r *reloader) reread() (pooler.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.config(r.loader.Load())
}

// change sets one key besides the file.
func (r *reloader) change(key, value string) (pooler.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	file, warnings, err := r.loader.Set(key, value)
	if err != nil {
		return pooler.Config{}, err
	}
	config, err := r.config(file, warnings, nil)
	if err != nil {
		r.loader.Unset()
	}
	return config, err
}

func (r *reloader) config(file bouncer.Config, warnings []bouncer.Warning, err error) (pooler.Config, error) {
	if err != nil {
		return pooler.Config{}, err
	}
	config, err := poolerConfig(&file)
	if err != nil {
		return pooler.Config{}, err
	}
	if err := setLimits(&config, r.log); err != nil {
		return pooler.Config{}, err
	}
	if err := r.out.configure(&file); err != nil {
		return pooler.Config{}, err
	}
	for _, w := range warnings {
		r.log.Warn(w.String())
	}
	return config, nil
}

// reload obeys a SIGHUP, and tells systemd about it (Type=notify-reload).
func reload(p *pooler.Pooler, log *slog.Logger) {
	log.Info("got SIGHUP, re-reading config")
	notify(fmt.Sprintf("%s\n%s", daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec()), log)
	if err := p.Reread(); err != nil {
		log.Error("config file loading failed", "error", err)
	}
	notify(daemon.SdNotifyReady, log)
}
