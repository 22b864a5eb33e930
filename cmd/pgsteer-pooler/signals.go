package main

import (
	"log/slog"
	"os"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/pgsteer/pgsteer/pkg/pooler"
)

// obeyed are the signals that mean something.
var obeyed = []os.Signal{
	syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
}

// obey does what signals say until the pooler has ended. Drain has it end within
// Config.ShutdownTimeout.
func obey(signals <-chan os.Signal, ended <-chan struct{}, drain func(), p *pooler.Pooler, log *slog.Logger) error {
	stopping := false
	for {
		select {
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				reload(p, log)
			case s == syscall.SIGUSR1:
				log.Info("got SIGUSR1, pausing all activity")
				p.Pause()
			case s == syscall.SIGUSR2:
				log.Info("got SIGUSR2, continuing from PAUSE")
				p.Resume()
			case s == syscall.SIGQUIT, stopping:
				log.Info("stopping at once", "signal", s.String())
				return p.Close()
			case s == syscall.SIGINT:
				stopping = true
				log.Info("got SIGINT, shutting down, waiting for all servers connections to be released")
				notify(daemon.SdNotifyStopping, log)
				p.Shutdown(pooler.ShutdownWaitForServers)
			default:
				stopping = true
				log.Info("stopping: transactions may come to their end", "signal", s.String())
				notify(daemon.SdNotifyStopping, log)
				drain()
			}
		case <-ended:
			return nil
		}
	}
}
