package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// ErrForeignProgram means that somebody else's XDP program is on the interface.
var ErrForeignProgram = errors.New("another XDP program is attached")

// checkForeign refuses to share: replacing somebody's program would break them.
func checkForeign(iface netlink.Link, pinPath string) error {
	attached := iface.Attrs().Xdp
	if attached == nil || !attached.Attached {
		return nil
	}
	l, ifindex, program, err := pinnedLink(pinPath)
	if err != nil {
		return err
	}
	if l != nil {
		defer l.Close()
		if int(ifindex) == iface.Attrs().Index && uint32(program) == attached.ProgId {
			return nil
		}
	}
	name := iface.Attrs().Name
	return fmt.Errorf("%w on %s, which is not pinned in %s: %s; it is left alone: see `bpftool net show dev %s` and remove it with the tool that put it there",
		ErrForeignProgram, name, pinPath, describeProgram(attached.ProgId), name)
}

// dispatcher is the name that libxdp gives to the program by which it runs
// several on one interface.
const dispatcher = "xdp_dispatcher"

// describeProgram says what can be found out about a program. Only CAP_SYS_ADMIN
// may look at programs by their number; without it that is all there is to say.
func describeProgram(id uint32) string {
	said := fmt.Sprintf("program id %d", id)
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return said
	}
	defer prog.Close()
	if info, err := prog.Info(); err == nil {
		said = fmt.Sprintf("%q, %s", info.Name, said)
		if info.Name == dispatcher {
			said += ", which runs the programs of libxdp's users (`xdp-loader status` lists them)"
		}
		if uid, ok := info.CreatedByUID(); ok {
			said += fmt.Sprintf(", loaded by user %d", uid)
		}
	}
	if who := holders(id); len(who) > 0 {
		said += ", held by " + strings.Join(who, " and ")
	}
	return said
}

// holders are the other processes that have the program open, themselves or by
// a link: as a rule the one that has loaded it, if it still runs.
func holders(id uint32) []string {
	files, err := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	if err != nil {
		return nil
	}
	wanted := fmt.Sprintf("\nprog_id:\t%d\n", id)
	self := fmt.Sprint(os.Getpid())
	var who []string
	for _, file := range files {
		pid := strings.Split(file, "/")[2]
		text, err := os.ReadFile(file)
		if pid == self || err != nil || !strings.Contains(string(text), wanted) {
			continue // gone, or not ours to see
		}
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		one := fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid)
		if !slices.Contains(who, one) {
			who = append(who, one)
		}
	}
	return who
}
