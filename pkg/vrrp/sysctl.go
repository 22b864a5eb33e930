package vrrp

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Linux answers ARP for any address of the host on any interface, unless told
// otherwise. On a host with two interfaces in one LAN both hardware addresses
// are learned for a virtual address then, one of them past the fence.
const (
	arpIgnoreForeign = 1 // arp_ignore: answer only for the interface's own addresses
	arpAnnounceBest  = 2 // arp_announce: speak only as one of them
)

// arpSetting returns the value that counts for an interface: the greater of its
// own and that of all.
func arpSetting(root, device, key string) (int, error) {
	setting := 0
	for _, name := range []string{"all", device} {
		text, err := os.ReadFile(filepath.Join(root, name, key))
		if err != nil {
			return 0, fmt.Errorf("reading a kernel setting: %w", err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return 0, fmt.Errorf("reading a kernel setting: %w", err)
		}
		setting = max(setting, n)
	}
	return setting, nil
}

// looseARP returns which of the interfaces would answer ARP for addresses of
// another one, or speak as them. One whose settings cannot be read is left out.
func looseARP(root string, devices []string) []string {
	return slices.DeleteFunc(slices.Clone(devices), func(device string) bool {
		ignore, err := arpSetting(root, device, "arp_ignore")
		announce, err2 := arpSetting(root, device, "arp_announce")
		return err != nil || err2 != nil || ignore >= arpIgnoreForeign && announce >= arpAnnounceBest
	})
}

// adviseARP warns when another interface than that of the virtual addresses may
// answer for them. The calling thread is in the network namespace.
func adviseARP(device string, log *slog.Logger) {
	interfaces, err := net.Interfaces()
	if err != nil {
		log.Warn("failed to list the interfaces, to see whether they answer for each other", "error", err)
		return
	}
	var others []string
	for _, ifi := range interfaces {
		if ifi.Name != device && ifi.Flags&net.FlagUp != 0 && len(ifi.HardwareAddr) == 6 {
			others = append(others, ifi.Name)
		}
	}
	if loose := looseARP("/proc/sys/net/ipv4/conf", others); len(loose) > 0 {
		log.Warn("other interfaces may answer ARP for the virtual addresses", "interfaces", loose,
			"fix", "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
	}
}
