package main

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// The functions here put the validated configuration into the words of the
// parts, which do not know it.

func balancerConfig(cfg *config.Config, log *slog.Logger) xdp.Config {
	return xdp.Config{
		Interface:        cfg.Interface,
		Mode:             cfg.XDP.Mode,
		TX:               cfg.XDP.TX,
		PinPath:          cfg.XDP.PinPath,
		FlowTableSize:    cfg.XDP.FlowTableSize,
		HalfOpenFlows:    cfg.XDP.HalfOpenFlows,
		SYNRatePerSource: cfg.XDP.SYNRate.PerSource,
		SYNRateTotal:     cfg.XDP.SYNRate.Total,
		ResetRate:        cfg.XDP.ResetRate,
		Replicate:        cfg.Sync != nil,
		IPv6:             hasIPv6(cfg),
		SNATLow:          cfg.XDP.SNATLow,
		SNATHigh:         cfg.XDP.SNATHigh,
		Timeouts: xdp.Timeouts{
			SYN:         cfg.Timeouts.SYN,
			Established: cfg.Timeouts.Established,
			FIN:         cfg.Timeouts.FIN,
			TimeWait:    cfg.Timeouts.TimeWait,
			Closed:      cfg.Timeouts.Closed,
			Reset:       cfg.Timeouts.Reset,
		},
		ProbeInterval: cfg.Timeouts.Probe.Interval,
		ProbeCount:    cfg.Timeouts.Probe.Count,
		SweepInterval: cfg.XDP.SweepInterval,
		Log:           log,
	}
}

// hasIPv6 reports whether any virtual address is IPv6: those of the services
// are among them.
func hasIPv6(cfg *config.Config) bool {
	return slices.ContainsFunc(cfg.VirtualRouters, func(r config.VirtualRouter) bool { return r.Addresses[0].Addr().Is6() })
}

func services(cfg *config.Config) []lb.Service {
	var all []lb.Service
	for _, s := range cfg.Services {
		service := lb.Service{
			Name:          s.Name,
			Addr:          s.Addr,
			Scheduler:     s.Scheduler,
			SlowStart:     s.SlowStart,
			DropWhenFull:  s.WhenFull == "drop",
			Allow:         s.Allow,
			NATAddrs:      s.NATAddrs,
			ClientAddress: s.ClientAddress,
			ResetOnDown:   s.OnMarkedDown == "reset",
			DrainTimeout:  s.DrainTimeout,
		}
		for _, b := range s.Backends {
			service.Backends = append(service.Backends, lb.Backend{
				Name:           b.Name,
				Addr:           b.Addr,
				Weight:         b.Weight,
				MaxConnections: b.MaxConnections,
				Backup:         b.Backup,
			})
		}
		all = append(all, service)
	}
	return all
}

func targets(cfg *config.Config) []health.Target {
	var all []health.Target
	for _, s := range cfg.Services {
		check := health.TCP()
		if s.Check.Type == "postgres" {
			check = health.Postgres(health.PostgresOptions{
				User:            s.Check.User,
				Database:        s.Check.Database,
				ApplicationName: "pgsteer " + cfg.Node,
			})
		}
		for _, b := range s.Backends {
			all = append(all, health.Target{
				Service:      s.Name,
				Backend:      b.Name,
				Addr:         b.Addr,
				Check:        check,
				CheckName:    s.Check.Type,
				Interval:     s.Check.Interval,
				FastInterval: s.Check.FastInterval,
				Timeout:      s.Check.Timeout,
				Fall:         s.Check.Fall,
				Rise:         s.Check.Rise,
			})
		}
	}
	return all
}

func vips(cfg *config.Config) []lb.VIPStats {
	var all []lb.VIPStats
	for _, r := range cfg.VirtualRouters {
		for _, p := range r.Addresses {
			all = append(all, lb.VIPStats{Addr: p.Addr(), Router: r.Name, VRID: r.VRID, Priority: r.Priority})
		}
	}
	return all
}

func (d *balancerDaemon) routerConfig(r config.VirtualRouter, f *fence) (vrrp.Config, error) {
	c := vrrp.Config{
		Name:           r.Name,
		Interface:      d.cfg.Interface,
		VRID:           r.VRID,
		Version:        r.Version,
		Priority:       r.Priority,
		AdvertInterval: r.AdvertInterval,
		Preempt:        r.Preempt,
		PreemptDelay:   r.PreemptDelay,
		Addresses:      r.Addresses,
		Source:         r.Source,
		Peers:          r.Peers,
		Checksum: map[string]vrrp.ChecksumForm{
			"auto": vrrp.ChecksumAuto, "message": vrrp.ChecksumMessage, "pseudo_header": vrrp.ChecksumPseudo,
		}[r.Checksum],
		Lone:         r.Lone,
		Auth:         vrrp.Secret(r.Password),
		Log:          d.log,
		Fence:        f,
		OnTransition: f.transition,
	}
	if d.sync != nil {
		limit := 3 * d.cfg.Sync.Heartbeat
		c.SyncGate = true
		c.PeerActive = func() bool { return d.sync.heldByPeer(r, limit) }
		c.Witness, c.WitnessTimeout = d.witness, witnessTimeout(d.cfg)
	}
	if r.HMAC != nil {
		var err error
		c.HMAC, err = readHMAC(r.HMAC)
		return c, err
	}
	return c, nil
}

// readHMAC reads the keys' files.
func readHMAC(c *config.HMAC) (*vrrp.HMAC, error) {
	h := &vrrp.HMAC{
		Mode: map[string]vrrp.HMACMode{
			"enforce": vrrp.HMACEnforce, "permissive": vrrp.HMACPermissive, "receive_only": vrrp.HMACReceiveOnly,
		}[c.Mode],
		SendKey: c.SendKey,
		Keys:    make(map[uint8]vrrp.Secret),
	}
	for id, path := range c.Keys {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading VRRP key %d: %w", id, err)
		}
		h.Keys[id] = vrrp.Secret(strings.TrimSuffix(string(text), "\n"))
	}
	return h, nil
}
