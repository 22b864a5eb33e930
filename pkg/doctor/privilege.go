package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// A capability is one that the daemon cannot work without.
type capability struct {
	name string
	bit  uint
}

// needed is what deploy's unit grants and no more: NET_ADMIN attaches XDP and
// adds addresses, NET_RAW sends adverts and ARP, BPF loads the program, and
// PERFMON lets the verifier accept its pointer arithmetic.
var needed = []capability{
	{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
	{"CAP_NET_RAW", unix.CAP_NET_RAW},
	{"CAP_BPF", unix.CAP_BPF},
	{"CAP_PERFMON", unix.CAP_PERFMON},
}

// Capabilities names the capabilities in force that this process lacks to be a
// balancer's daemon.
func Capabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has 64 bits in two halves
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading this process's capabilities: %w", err)
	}
	return checkCapabilities(uint64(data[0].Effective) | uint64(data[1].Effective)<<32)
}

// checkCapabilities names what is missing in the set have.
func checkCapabilities(have uint64) error {
	// CAP_SYS_ADMIN contained BPF and PERFMON before Linux 5.8, and still does.
	if have&(1<<unix.CAP_SYS_ADMIN) != 0 {
		have |= 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON
	}
	var missing []string
	for _, c := range needed {
		if have&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	noun := "capability"
	if len(missing) > 1 {
		noun = "capabilities"
	}
	return fmt.Errorf("missing the %s %s: run as root or grant it, as deploy/systemd's unit does", noun, strings.Join(missing, ", "))
}

// Interface makes sure that the interface exists and has the addresses that
// advertisements are to be sent from.
func Interface(name string, routers []Router) error {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("interface %s does not exist; this node has %s", name, interfaceNames())
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return fmt.Errorf("reading the addresses of %s: %w", name, err)
	}
	var own []string
	has := map[netip.Addr]bool{}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			has[p.Addr()] = true
			own = append(own, p.Addr().String())
		}
	}
	for _, r := range routers {
		if !has[r.Source] {
			return fmt.Errorf("virtual router %s: its source %s is not an address of %s, which has %s",
				r.Name, r.Source, name, orNone(own))
		}
	}
	return nil
}

func interfaceNames() string {
	ifaces, err := net.Interfaces()
	if err != nil {
		return "an unknown number of others (" + err.Error() + ")"
	}
	var names []string
	for _, i := range ifaces {
		names = append(names, i.Name)
	}
	return orNone(names)
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
