// Package doctor looks at a machine that is, or is to be, a balancer node, and
// says what stands in the way. It changes nothing.
//
// What the daemon refuses at its start is refused here by the same functions,
// so that the two never disagree.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/health"
)

// Severity is how bad a finding is.
type Severity uint8

// From good to bad. A node with an error does not work; with a warning it works
// worse than it could, or will not some day.
const (
	OK Severity = iota
	Info
	Warning
	Error
)

func (s Severity) String() string {
	return [...]string{"ok", "info", "warning", "error"}[s]
}

// MarshalText writes the severity as its name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Severity) UnmarshalText(text []byte) error {
	for v := OK; v <= Error; v++ {
		if v.String() == string(text) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("unknown severity %q", text)
}

// Finding is what one check has found.
type Finding struct {
	// Code names the check, and stays the same from release to release; Explain
	// tells what it is about.
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Subject is what was looked at: an interface, an address. "": the machine.
	Subject string `json:"subject,omitempty"`
	What    string `json:"what"`
	// Mend is a command, or what else is to be done. "" where nothing is.
	Mend string `json:"mend,omitempty"`
}

// Node is what the machine is to be. Only Interface is required: without the
// rest what can be told from the machine alone is looked at.
type Node struct {
	Interface string
	// Mode is how the XDP program is to be attached: auto, native or generic.
	Mode string
	// PinPath is the directory for the pins of the program.
	PinPath string
	// FlowTableSize is the number of entries of the flow table, 0 if not known.
	FlowTableSize uint32
	// Families are the numbers 4 and 6 of the services there are.
	Families []int

	Routers  []Router
	Backends []Backend
	Sync     *Sync
	// StatsListen is the address of the stats page, "" for none.
	StatsListen string
	// Running says that the daemon runs here: what it holds is no conflict.
	Running bool
}

// Router is one virtual router.
type Router struct {
	Name      string
	VRID      uint8
	Source    netip.Addr
	Peers     []netip.Addr // none: multicast
	Addresses []netip.Addr
	HMAC      bool // its advertisements are authenticated, and so dated
	KeyFiles  []string
}

// Backend is one pooler.
type Backend struct {
	Service, Name string
	Addr          netip.AddrPort
	Check         health.Check
	Timeout       time.Duration
}

// Sync is the connection between the nodes.
type Sync struct {
	Listen, Peer netip.AddrPort
	// Key says why the key file cannot be used, nil if it can.
	Key error
}

// Options say how thoroughly to look.
type Options struct {
	// Listen is how long the LAN is listened to. keepalived's default is one
	// advertisement a second.
	Listen time.Duration
}

// DefaultListen hears three advertisements of a router with an interval of 1 s,
// the longest one in use as a rule.
const DefaultListen = 3500 * time.Millisecond

// examination collects findings.
type examination struct {
	Node
	Options
	root     string // of the file systems /proc, /sys and /run: "/"
	findings []Finding
}

func (e *examination) add(code string, severity Severity, subject, mend, format string, args ...any) {
	e.findings = append(e.findings, Finding{Code: code, Severity: severity, Subject: subject, Mend: mend, What: fmt.Sprintf(format, args...)})
}

// Examine looks at everything. The findings are in the order of the codes' list;
// good ones are among them, so that it can be seen what was looked at.
func Examine(ctx context.Context, n Node, o Options) []Finding {
	e := &examination{Node: n, Options: o, root: "/"}
	e.Listen = cmp.Or(o.Listen, DefaultListen)
	privileged := e.privilege()
	e.kernel(privileged)
	e.lockdown()
	e.pins()
	e.memory()
	e.clock()
	e.classic()
	if e.link(privileged) {
		e.sysctls()
		if privileged {
			e.neighbourhood(ctx)
		}
		e.backends(ctx)
		e.peer(ctx)
	}
	e.keys()
	e.ports()
	slices.SortStableFunc(e.findings, func(a, b Finding) int { return rank(a.Code) - rank(b.Code) })
	return e.findings
}

func rank(code string) int {
	return slices.IndexFunc(codes, func(c Code) bool { return c.Name == code })
}

// Worst returns the highest severity among the findings.
func Worst(findings []Finding) Severity {
	worst := OK
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}
