package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/xdp"
)

const (
	bridgeName = "br0"
	hostLink   = "eth0"
)

// hostSysctls are set in every host; productSysctls, in those that run pgsteer,
// are the ones that are installed on such machines (deploy/sysctl.d).
var (
	hostSysctls = map[string]string{
		// Nobody on this LAN advertises routers or has another's address.
		// Without asking for either no time is lost at the start, and
		// captures are not disturbed.
		"net/ipv6/conf/all/accept_ra":                "0",
		"net/ipv6/conf/default/accept_ra":            "0",
		"net/ipv6/conf/all/router_solicitations":     "0",
		"net/ipv6/conf/default/router_solicitations": "0",
		"net/ipv6/conf/all/accept_dad":               "0",
		"net/ipv6/conf/default/accept_dad":           "0",
	}
	// The LAN's switch looks at nothing beyond the Ethernet header. Where the
	// kernel's bridge filter is loaded, it would drop malformed IP packets
	// that the balancer is to be shown.
	lanSysctls = map[string]string{
		"net/ipv6/conf/all/disable_ipv6":      "1",
		"net/ipv6/conf/default/disable_ipv6":  "1",
		"net/bridge/bridge-nf-call-arptables": "0",
		"net/bridge/bridge-nf-call-iptables":  "0",
		"net/bridge/bridge-nf-call-ip6tables": "0",
	}
	productSysctls = map[string]string{
		"net/ipv4/conf/all/arp_ignore":   "1",
		"net/ipv4/conf/all/arp_announce": "2",
		"net/core/somaxconn":             "4096",
	}
)

// buildNetwork makes the namespaces, the bridge and the cables.
func (l *Lab) buildNetwork(o Options) error {
	if err := createNamespace(l.namespace(lanHost)); err != nil {
		return err
	}
	if err := setSysctls(l.namespace(lanHost), lanSysctls); err != nil {
		return err
	}
	for _, h := range o.hosts() {
		if err := createNamespace(l.namespace(h.name)); err != nil {
			return err
		}
		values := []map[string]string{hostSysctls}
		if h.priority != 0 || h.name == Pooler {
			values = append(values, productSysctls)
		}
		if err := setSysctls(l.namespace(h.name), values...); err != nil {
			return err
		}
	}
	lan, err := openHandle(l.namespace(lanHost))
	if err != nil {
		return err
	}
	defer lan.Close()
	bridge, err := addBridge(lan)
	if err != nil {
		return err
	}
	for _, h := range o.hosts() {
		if err := l.plugIn(lan, bridge, h); err != nil {
			return fmt.Errorf("connecting host %s: %w", h.name, err)
		}
	}
	if o.Routed {
		return l.buildRoutes()
	}
	return nil
}

func addBridge(lan *netlink.Handle) (netlink.Link, error) {
	if err := linkUp(lan, "lo"); err != nil {
		return nil, err
	}
	// Without snooping the bridge floods VRRP's multicast like a plain
	// switch. STP is off by default, so that a healed port forwards at once.
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridgeName, lanMTU
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := lan.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("adding bridge %s: %w", bridgeName, err)
	}
	if err := linkUp(lan, bridgeName); err != nil {
		return nil, err
	}
	return bridge, nil
}

// plugIn lays a cable (a veth pair) between the bridge and a host.
func (l *Lab) plugIn(lan *netlink.Handle, bridge netlink.Link, h host) error {
	ns, err := netns.GetFromName(l.namespace(h.name))
	if err != nil {
		return fmt.Errorf("opening network namespace: %w", err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = h.port(), lanMTU, bridge.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: hostLink, PeerHardwareAddr: h.mac(),
		PeerNamespace: netlink.NsFd(ns), PeerMTU: lanMTU,
	}
	if err := lan.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding veth pair %s: %w", h.port(), err)
	}
	if h.priority != 0 {
		if err := l.prepareBalancerPort(h); err != nil {
			return err
		}
	}
	if err := linkUp(lan, h.port()); err != nil {
		return err
	}
	remote, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer remote.Close()
	if err := linkUp(remote, "lo"); err != nil {
		return err
	}
	_, err = addressLink(remote, hostLink, []netip.Prefix{
		netip.PrefixFrom(h.addr, lanBits), netip.PrefixFrom(h.addr6, lanBits6),
	})
	return err
}

// prepareBalancerPort makes the bridge port that faces a balancer behave like
// the wire before a real network card, which veth alone does not:
//   - transmit checksum offload off, so that checksums are complete on arrival.
//     A local sender leaves only the pseudo-header's sum in the packet; XDP
//     rewrites raw bytes and XDP_TX forgets that the checksum is unfinished.
//     This turns segmentation offload off too, so no super-packets arrive.
//   - an XDP program that passes everything: veth delivers what its peer sends
//     by XDP_TX only when the receiving end has a program of its own.
func (l *Lab) prepareBalancerPort(h host) error {
	return inNamespace(l.namespace(lanHost), func() error {
		if err := disableTxChecksum(h.port()); err != nil {
			return err
		}
		ifi, err := net.InterfaceByName(h.port())
		if err != nil {
			return fmt.Errorf("finding %s: %w", h.port(), err)
		}
		if err := xdp.AttachPass(ifi.Index); err != nil {
			return fmt.Errorf("attaching the passing XDP program to %s: %w", h.port(), err)
		}
		return nil
	})
}

// setLink plugs a host's cable in or pulls it: the bridge port goes down, so
// the host loses its carrier too.
func (l *Lab) setLink(h host, up bool) error {
	lan, err := openHandle(l.namespace(lanHost))
	if err != nil {
		return err
	}
	defer lan.Close()
	if up {
		return linkUp(lan, h.port())
	}
	link, err := lan.LinkByName(h.port())
	if err != nil {
		return fmt.Errorf("finding bridge port %s: %w", h.port(), err)
	}
	if err := lan.LinkSetDown(link); err != nil {
		return fmt.Errorf("taking bridge port %s down: %w", h.port(), err)
	}
	return nil
}

// linkIsUp tells whether a host's cable is plugged in.
func (l *Lab) linkIsUp(h host) (bool, error) {
	lan, err := openHandle(l.namespace(lanHost))
	if err != nil {
		return false, err
	}
	defer lan.Close()
	link, err := lan.LinkByName(h.port())
	if err != nil {
		return false, fmt.Errorf("finding bridge port %s: %w", h.port(), err)
	}
	return link.Attrs().Flags&net.FlagUp != 0, nil
}

func openHandle(namespace string) (*netlink.Handle, error) {
	ns, err := netns.GetFromName(namespace)
	if err != nil {
		return nil, fmt.Errorf("opening network namespace %s: %w", namespace, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink in %s: %w", namespace, err)
	}
	return h, nil
}

func linkUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	return nil
}

// setSysctls writes kernel settings, given by their path under /proc/sys, in a
// network namespace. Those of IPv6 and of the bridge filter are skipped where
// the kernel has neither.
func setSysctls(namespace string, values ...map[string]string) error {
	return inNamespace(namespace, func() error {
		for _, group := range values {
			for key, value := range group {
				err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
				optional := strings.HasPrefix(key, "net/ipv6/") || strings.HasPrefix(key, "net/bridge/")
				if errors.Is(err, os.ErrNotExist) && optional {
					continue
				}
				if err != nil {
					return fmt.Errorf("setting %s: %w", key, err)
				}
			}
		}
		return nil
	})
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	cmd  uint32
	data uint32
}

// ifreqData is struct ifreq of linux/if.h with ifr_data in use; the union is
// 24 bytes long on 64-bit machines.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// disableTxChecksum turns transmit checksum offload off, as
// `ethtool -K NAME tx off` does, in the caller's network namespace.
func disableTxChecksum(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	value := ethtoolValue{cmd: unix.ETHTOOL_STXCSUM, data: 0}
	req := ifreqData{data: unsafe.Pointer(&value)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return fmt.Errorf("turning transmit checksum offload of %s off: %w", name, errno)
	}
	return nil
}
