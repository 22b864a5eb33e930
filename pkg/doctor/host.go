package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/xdp"
)

func (e *examination) path(name string) string { return filepath.Join(e.root, name) }

// word reads a file with one word in it; "" if there is no such file.
func (e *examination) word(name string) string {
	text, err := os.ReadFile(e.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (e *examination) privilege() bool {
	if err := Capabilities(); err != nil {
		e.add("capabilities", Error, "", "run it as root: sudo pgsteer doctor", "%v; what takes them was not looked at", err)
		return false
	}
	e.add("capabilities", OK, "", "", "all there")
	return true
}

func (e *examination) kernel(privileged bool) {
	if !privileged {
		return
	}
	warnings, err := xdp.CheckKernel()
	if err != nil {
		e.add("kernel", Error, "", "install a kernel of 5.15 or later: Debian 12 has 6.1", "%v", err)
		return
	}
	e.add("kernel", OK, "", "", "%s takes XDP programs", e.word("proc/sys/kernel/osrelease"))
	for _, w := range warnings {
		what, mend, _ := strings.Cut(w, ": ")
		e.add("jit", Warning, "", mend, "%s", what)
	}
	if len(warnings) == 0 {
		e.add("jit", OK, "", "", "on")
	}
}

func (e *examination) lockdown() {
	if strings.Contains(e.word("sys/kernel/security/lockdown"), "[confidentiality]") {
		e.add("lockdown", Error, "", "boot without lockdown=confidentiality (integrity is no hindrance)", "the kernel is locked down for confidentiality")
		return
	}
	e.add("lockdown", OK, "", "", "none that matters")
}

// pins looks for a BPF file system at the pin path, or the nearest directory
// above that exists.
func (e *examination) pins() {
	if e.PinPath == "" {
		return
	}
	dir := e.PinPath
	var fs unix.Statfs_t
	err := unix.Statfs(dir, &fs)
	for errors.Is(err, unix.ENOENT) && dir != "/" {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &fs)
	}
	switch {
	case err != nil:
		e.add("bpffs", Error, e.PinPath, "", "it cannot be looked at: %v", err)
	case fs.Type != unix.BPF_FS_MAGIC:
		e.add("bpffs", Error, e.PinPath, "mount -t bpf bpf /sys/fs/bpf", "no BPF file system is mounted there")
	default:
		e.add("bpffs", OK, e.PinPath, "", "on the BPF file system at %s", dir)
	}
}

// Bytes of an entry of the flow table and of its place in the table, by family:
// the kernel's 48 bytes of header, key and value, rounded up to 8 (struct
// htab_elem of kernel/bpf/hashtab.c), and 16 a bucket, of which there are as
// many as the next power of two.
var entryBytes = map[int]uint64{4: 48 + 16 + 64, 6: 48 + 40 + 88}

const bucketBytes = 16

// tableBytes is what the flow tables take.
func tableBytes(entries uint32, families []int) (sum uint64) {
	if entries == 0 {
		return 0
	}
	buckets := uint64(1) << bits.Len32(entries-1)
	for _, f := range families {
		sum += uint64(entries)*entryBytes[f] + buckets*bucketBytes
	}
	return sum
}

const mebi = 1 << 20

func (e *examination) memory() {
	need := tableBytes(e.FlowTableSize, e.Families)
	free, err := e.available()
	switch {
	case need == 0:
	case err != nil:
		e.add("memory", Info, "", "", "the flow table takes %d MiB; what is free is not known: %v", need/mebi, err)
	case e.Running:
		e.add("memory", OK, "", "", "the flow table takes %d MiB; %d MiB are free beside it", need/mebi, free/mebi)
	case need > free:
		e.add("memory", Error, "", "lower xdp.flow_table_size", "the flow table takes %d MiB, and only %d MiB are free", need/mebi, free/mebi)
	case need > free/2:
		e.add("memory", Warning, "", "lower xdp.flow_table_size", "the flow table takes %d of %d MiB that are free", need/mebi, free/mebi)
	default:
		e.add("memory", OK, "", "", "the flow table takes %d of %d MiB that are free", need/mebi, free/mebi)
	}
}

// available is MemAvailable of proc(5), in bytes.
func (e *examination) available() (uint64, error) {
	f, err := os.Open(e.path("proc/meminfo"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.Join(lines.Err(), errors.New("no MemAvailable in /proc/meminfo"))
}

func (e *examination) clock() {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	dated := slices.ContainsFunc(e.Routers, func(r Router) bool { return r.HMAC })
	switch {
	case err != nil:
		e.add("clock", Info, "", "", "the kernel does not say whether its clock is in step: %v", err)
	case state != unix.TIME_ERROR:
		e.add("clock", OK, "", "", "in step with its source")
	case dated:
		e.add("clock", Warning, "", "run a time service: apt install chrony", "no time service keeps it in step, and advertisements are authenticated")
	default:
		e.add("clock", Info, "", "", "no time service keeps it in step; nothing here needs it to be")
	}
}

// classic looks for the programs that pgsteerd takes the place of. Those in
// other network namespaces are none of ours.
func (e *examination) classic() {
	own, err := os.Readlink(e.path("proc/self/ns/net"))
	names, err2 := filepath.Glob(e.path("proc/[0-9]*/comm"))
	if err = errors.Join(err, err2); err != nil {
		e.add("classic", Info, "", "", "the processes cannot be listed: %v", err)
		return
	}
	found := map[string][]string{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		comm := strings.TrimSpace(string(text))
		if comm != "keepalived" && comm != "haproxy" {
			continue
		}
		dir := filepath.Dir(name)
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && ns != own {
			continue
		}
		found[comm] = append(found[comm], filepath.Base(dir))
	}
	for _, comm := range []string{"keepalived", "haproxy"} {
		if pids := found[comm]; len(pids) > 0 {
			e.add("classic", Warning, comm, fmt.Sprintf("systemctl disable --now %s", comm), "it runs here (pid %s)", strings.Join(pids, ", "))
		}
	}
	if len(found) == 0 {
		e.add("classic", OK, "", "", "neither keepalived nor haproxy runs here")
	}
}

// ports looks whether what the daemon listens at is free.
func (e *examination) ports() {
	if e.Running {
		return
	}
	listens := []string{e.StatsListen}
	if e.Sync != nil {
		listens = append(listens, e.Sync.Listen.String())
	}
	for _, at := range listens {
		if at == "" {
			continue
		}
		l, err := net.Listen("tcp", at)
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			e.add("port", Error, at, fmt.Sprintf("find out who has it: ss -ltnp 'sport = :%s'", portOf(at)), "somebody listens there already")
		case err != nil:
			e.add("port", Error, at, "", "it cannot be listened at: %v", err)
		default:
			e.add("port", OK, at, "", "free")
			_ = l.Close() // nothing was accepted
		}
	}
}

func portOf(at string) string {
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		return at
	}
	return port
}

// keys looks at the files with secrets.
func (e *examination) keys() {
	if e.Sync != nil {
		if e.Sync.Key != nil {
			e.add("key", Error, "sync.key_file", "make one by `pgsteer keygen` and copy it to both nodes, mode 0600", "%v", e.Sync.Key)
		} else {
			e.add("key", OK, "sync.key_file", "", "it can be used")
		}
	}
	for _, r := range e.Routers {
		for _, file := range r.KeyFiles {
			info, err := os.Stat(file)
			switch {
			case err != nil:
				e.add("key", Error, file, "", "%v", err)
			case info.Mode().Perm()&0o077 != 0:
				e.add("key", Warning, file, "chmod 600 "+file, "it is open to group or others (mode %04o)", info.Mode().Perm())
			default:
				e.add("key", OK, file, "", "for its owner only")
			}
		}
	}
}
