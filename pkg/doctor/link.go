package doctor

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// native are the drivers with XDP of their own, as the kernels' sources have
// them (those with an ndo_bpf that takes XDP_SETUP_PROG) by 6.12.
var native = words(`atlantic bnxt_en bonding cpsw dpaa2-eth ena enetc fec gve hv_netvsc i40e ice idpf igb igc ixgbe ixgbevf
	lan966x-switch mana mlx4_en mlx5_core mtk_soc_eth mvneta mvpp2 netdevsim nfp octeon_ep qede rvu_nicpf sfc sfc_siena stmmaceth
	thunder-nicvf tsnep tun veth virtio_net vmxnet3 xen_netfront`)

func words(s string) map[string]bool {
	set := map[string]bool{}
	for w := range strings.FieldsSeq(s) {
		set[w] = true
	}
	return set
}

// link looks at the interface, and reports whether there is one to go on with.
func (e *examination) link(privileged bool) bool {
	if err := Interface(e.Interface, e.Routers); err != nil {
		e.add("interface", Error, e.Interface, "", "%v", err)
		return false
	}
	ifi, err := net.InterfaceByName(e.Interface)
	if err != nil || len(ifi.HardwareAddr) != 6 {
		e.add("interface", Error, e.Interface, "", "it has no Ethernet address")
		return false
	}
	e.add("interface", OK, e.Interface, "", "%v", ifi.HardwareAddr)
	switch {
	case ifi.Flags&net.FlagUp == 0:
		e.add("carrier", Error, e.Interface, "ip link set "+e.Interface+" up", "it is switched off")
	case ifi.Flags&net.FlagRunning == 0:
		e.add("carrier", Error, e.Interface, "", "no carrier: is the cable in?")
	default:
		e.add("carrier", OK, e.Interface, "", "there")
	}
	driver := e.driver()
	e.queues(driver)
	e.offloads()
	e.mtu(ifi.MTU)
	if privileged {
		e.attached()
	}
	return true
}

func (e *examination) driver() string {
	name, err := driverOf(e.Interface)
	switch {
	case err != nil:
		e.add("driver", Info, e.Interface, "", "its driver is not known: %v", err)
	case e.Mode == xdp.ModeGeneric:
		e.add("driver", Info, e.Interface, "", "%s; xdp.mode is generic", name)
	case native[name]:
		e.add("driver", OK, e.Interface, "", "%s has native XDP", name)
	case e.Mode == xdp.ModeNative:
		e.add("driver", Error, e.Interface, "set xdp.mode to auto, or use another card (virtio for a virtual one)", "%s is not known to have native XDP, and xdp.mode is native", name)
	default:
		e.add("driver", Warning, e.Interface, "use another card (virtio for a virtual one)", "%s is not known to have native XDP: the program runs in the network stack", name)
	}
	return name
}

// queues: virtio_net takes one transmit queue more for each CPU; if there are
// too few (since 5.13) the CPUs share one under a lock.
func (e *examination) queues(driver string) {
	if driver != "virtio_net" || e.Mode == xdp.ModeGeneric {
		return
	}
	var c channels
	cpus := uint32(runtime.NumCPU())
	switch err := ethtool(e.Interface, &c); {
	case err != nil:
		e.add("queues", Info, e.Interface, "", "they cannot be counted: %v", err)
	case c.maxCombined < c.combined+cpus:
		mend := fmt.Sprintf("give the virtual card %d queues (libvirt: <driver name='vhost' queues='%d'/>; qemu: queues=%d, vectors=%d)",
			2*cpus, 2*cpus, 2*cpus, 4*cpus+2)
		if c.maxCombined > cpus {
			mend += fmt.Sprintf(", or use fewer: ethtool -L %s combined %d", e.Interface, c.maxCombined-cpus)
		}
		e.add("queues", Warning, e.Interface, mend, "%d of %d queues are in use, and %d CPUs need one more each to send by: they share",
			c.combined, c.maxCombined, cpus)
	default:
		e.add("queues", OK, e.Interface, "", "%d of %d in use, %d CPUs", c.combined, c.maxCombined, cpus)
	}
}

func (e *examination) offloads() {
	on, err := largeReceive(e.Interface)
	switch {
	case err != nil:
		e.add("lro", Info, e.Interface, "", "the card does not say: %v", err)
	case on:
		e.add("lro", Warning, e.Interface, "ethtool -K "+e.Interface+" lro off", "large receive offload is on")
	default:
		e.add("lro", OK, e.Interface, "", "off")
	}
}

func (e *examination) mtu(mtu int) {
	switch err := xdp.CheckMTU(mtu); {
	case err == nil:
		e.add("mtu", OK, e.Interface, "", "%d", mtu)
	case e.Mode == xdp.ModeNative:
		e.add("mtu", Error, e.Interface, "", "%v", err)
	default:
		e.add("mtu", Warning, e.Interface, "", "%v", err)
	}
}

// attached looks for XDP programs that are there already.
func (e *examination) attached() {
	mode, err := xdp.Attached(e.Interface, e.PinPath)
	switch {
	case err != nil:
		e.add("xdp", Error, e.Interface, "", "%v", err)
	case mode == "":
		e.add("xdp", OK, e.Interface, "", "no XDP program is attached")
	case mode == xdp.ModeGeneric && e.Mode != xdp.ModeGeneric:
		e.add("xdp", Warning, e.Interface, "see pgsteerd's log for the driver's reason", "pgsteer's program is attached in generic mode")
	default:
		e.add("xdp", OK, e.Interface, "", "pgsteer's program is attached in %s mode", mode)
	}
}

// sysctls looks at what the kernel does with ARP and with addresses.
func (e *examination) sysctls() {
	ignore := e.setting("arp_ignore")
	announce := e.setting("arp_announce")
	switch {
	case ignore < 0 || announce < 0:
		e.add("arp", Info, e.Interface, "", "the settings cannot be read")
	case ignore < 1 || announce < 2:
		e.add("arp", Warning, e.Interface, "sysctl --load /usr/lib/sysctl.d/60-pgsteer.conf",
			"arp_ignore is %d (1 is needed) and arp_announce %d (2): another interface of this node may speak for the virtual address", ignore, announce)
	default:
		e.add("arp", OK, e.Interface, "", "arp_ignore %d, arp_announce %d", ignore, announce)
	}
	if e.setting("rp_filter") == 1 {
		e.add("rp_filter", Info, e.Interface, "", "strict: it concerns the health checks alone, and only where a pooler answers by another interface")
	} else {
		e.add("rp_filter", OK, e.Interface, "", "off or loose")
	}
}

// setting is a setting of IPv4 for the interface, the greater of its own and
// that of all, which is the one that counts (ip-sysctl); -1 if not known.
func (e *examination) setting(name string) int {
	value := -1
	for _, of := range []string{"all", e.Interface} {
		if n, err := strconv.Atoi(e.word("proc/sys/net/ipv4/conf/" + of + "/" + name)); err == nil {
			value = max(value, n)
		}
	}
	return value
}

func socket() (int, error) {
	return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
}

func driverOf(device string) (string, error) {
	fd, err := socket()
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, device)
	if err != nil {
		return "", err
	}
	return unix.ByteSliceToString(info.Driver[:]), nil
}

// channels is struct ethtool_channels of linux/ethtool.h.
type channels struct {
	cmd                                    uint32
	maxRx, maxTx, maxOther, maxCombined    uint32
	countRx, countTx, countOther, combined uint32
}

// flags is struct ethtool_value.
type flags struct{ cmd, data uint32 }

// Commands and a flag of linux/ethtool.h.
const (
	getFlags    = 0x25
	getChannels = 0x3c
	flagLRO     = 1 << 15
)

// ethtoolRequest is a request of one of the kinds above.
type ethtoolRequest interface{ *channels | *flags }

// ethtool asks the driver.
func ethtool[T ethtoolRequest](device string, request T) error {
	fd, err := socket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the union is larger
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], device)
	switch r := any(request).(type) {
	case *channels:
		r.cmd = getChannels
		ifreq.data = unsafe.Pointer(r)
	case *flags:
		r.cmd = getFlags
		ifreq.data = unsafe.Pointer(r)
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	if errno != 0 {
		return errno
	}
	return nil
}

func largeReceive(device string) (bool, error) {
	var f flags
	err := ethtool(device, &f)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return f.data&flagLRO != 0, err
}
