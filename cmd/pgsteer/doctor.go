package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/doctor"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
)

// defaultConfig is where deploy's unit has pgsteerd read its configuration.
const defaultConfig = "/etc/pgsteer/pgsteerd.yaml"

const doctorAbout = `looks at the machine, its network card, the LAN, the poolers and the other node,
and says what stands in the way of its being a balancer, and what mends it. It
changes nothing, and may be run before pgsteerd is installed and while it runs.
It takes some seconds, in which it listens to the LAN. CONFIG is pgsteerd's
configuration, ` + defaultConfig + ` without it. In its place the name of
the network interface will do: what can be told from that is looked at.`

func doctorCommands() []command {
	return []command{
		{name: "run", args: "[CONFIG | INTERFACE]", about: doctorAbout, prepare: func(args []string) (action, error) {
			switch {
			case len(args) > 1:
				return nil, usagef("nothing may follow the configuration, but %q was given", args[1])
			case len(args) == 1 && args[0] == "":
				return nil, usagef("the name of the configuration is empty")
			case len(args) == 1:
				return func(s *session) error { return runDoctor(s, args[0]) }, nil
			}
			return func(s *session) error { return runDoctor(s, defaultConfig) }, nil
		}},
		{name: "explain", args: "[CODE]", about: "what a check is about; without CODE, all of them", prepare: func(args []string) (action, error) {
			codes := doctor.Codes()
			switch {
			case len(args) > 1:
				return nil, usagef("nothing may follow the code, but %q was given", args[1])
			case len(args) == 1:
				c, ok := doctor.Explain(args[0])
				if !ok {
					return nil, usagef("there is no check %q; pgsteer doctor explain lists them", args[0])
				}
				codes = []doctor.Code{c}
			}
			return func(s *session) error {
				return writeList(s.out, codes, func(r *row, c *doctor.Code) { r.cells(c.Name, c.About) }, left("CODE"), left("ABOUT"))
			}, nil
		}},
	}
}

// An unwellError says that there are findings to be mended.
type unwellError struct{ errors, warnings int }

func (e *unwellError) Error() string {
	return fmt.Sprintf("doctor: %s, %s", counted(e.errors, "error"), counted(e.warnings, "warning"))
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func runDoctor(s *session, of string) error {
	n, err := patient(of)
	if err != nil {
		return err
	}
	_, err = s.dial(s.socket).Backends(s.ctx)
	n.Running = !errors.Is(err, admin.ErrNotRunning)
	findings := s.examine(s.ctx, n, doctor.Options{})
	if err := writeFindings(s.out, findings); err != nil {
		return err
	}
	var e unwellError
	for _, f := range findings {
		switch f.Severity {
		case doctor.Error:
			e.errors++
		case doctor.Warning:
			e.warnings++
		}
	}
	if e.errors+e.warnings > 0 {
		return &e
	}
	return nil
}

func writeFindings(out *output, findings []doctor.Finding) error {
	if out.json {
		return out.value(findings)
	}
	for _, f := range findings {
		subject := f.Subject
		if subject != "" {
			subject += ": "
		}
		if _, err := fmt.Fprintf(out.w, "%-8s %-13s %s%s\n", f.Severity, f.Code, subject, f.What); err != nil {
			return err
		}
		if f.Mend == "" {
			continue
		}
		if _, err := fmt.Fprintf(out.w, "%24s%s\n", "-> ", f.Mend); err != nil {
			return err
		}
	}
	return nil
}

// patient is the node that a configuration, or the name of an interface, speaks
// of.
func patient(of string) (doctor.Node, error) {
	cfg, err := config.Load(of)
	switch {
	case errors.Is(err, fs.ErrNotExist) && of == defaultConfig:
		return doctor.Node{}, fmt.Errorf("%w; name another file, or an interface: pgsteer doctor run eth0", err)
	case errors.Is(err, fs.ErrNotExist) && !strings.Contains(of, "/"):
		if _, err := os.Stat("/sys/class/net/" + of); err != nil {
			return doctor.Node{}, fmt.Errorf("%s is neither a file nor a network interface", of)
		}
		return doctor.Node{Interface: of, Mode: "auto", PinPath: defaultPinPath}, nil
	case err != nil:
		return doctor.Node{}, err
	}
	return patientOf(cfg), nil
}

func patientOf(cfg *config.Config) doctor.Node {
	n := doctor.Node{
		Interface: cfg.Interface, Mode: cfg.XDP.Mode, PinPath: cfg.XDP.PinPath, FlowTableSize: cfg.XDP.FlowTableSize,
		StatsListen: cfg.Stats.Listen,
	}
	families := map[int]bool{}
	for _, s := range cfg.Services {
		families[map[bool]int{true: 4, false: 6}[s.Addr.Addr().Is4()]] = true
		check := health.TCP()
		if s.Check.Type == "postgres" {
			check = health.Postgres(health.PostgresOptions{User: s.Check.User, Database: s.Check.Database, ApplicationName: "pgsteer doctor"})
		}
		for _, b := range s.Backends {
			n.Backends = append(n.Backends, doctor.Backend{Service: s.Name, Name: b.Name, Addr: b.Addr, Check: check, Timeout: max(s.Check.Timeout, time.Second)})
		}
	}
	n.Families = slices.Sorted(maps.Keys(families))
	for _, r := range cfg.VirtualRouters {
		router := doctor.Router{Name: r.Name, VRID: r.VRID, Source: r.Source, Peers: r.Peers}
		for _, p := range r.Addresses {
			router.Addresses = append(router.Addresses, p.Addr())
		}
		if r.HMAC != nil {
			router.HMAC = true
			for _, id := range slices.Sorted(maps.Keys(r.HMAC.Keys)) {
				router.KeyFiles = append(router.KeyFiles, r.HMAC.Keys[id])
			}
		}
		n.Routers = append(n.Routers, router)
	}
	if c := cfg.Sync; c != nil {
		_, err := flowsync.LoadKey(c.KeyFile)
		n.Sync = &doctor.Sync{Listen: c.Listen, Peer: c.Peer, Key: err}
	}
	return n
}
