package xdp

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// What the program uses that was not always there, by the kernel release that
// brought it (bpf-helpers(7) and the kernels' own history).
var kernelFeatures = []struct {
	major, minor int
	what         string
}{
	{5, 5, "a clock of jiffies for BPF programs"},
	{5, 6, "batched reading of BPF maps"},
	{5, 9, "BPF links for XDP"},
	{5, 12, "BPF atomic operations that return the old value"},
	{5, 13, "NAPI on a veth without an XDP program of its own"},
}

// ErrKernel means that this kernel cannot run the program.
var ErrKernel = errors.New("this kernel cannot run the XDP program")

// CheckKernel says why the program cannot run here, in an error that matches
// ErrKernel, and what will make it slow, in warnings. It changes nothing. The
// floor is Linux 5.15.
func CheckKernel() (warnings []string, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("asking for the kernel's release: %w", err)
	}
	if err := checkRelease(unix.ByteSliceToString(name.Release[:])); err != nil {
		return nil, err
	}
	if err := probe(0); err != nil {
		return nil, err
	}
	jit, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	if err == nil && strings.TrimSpace(string(jit)) == "0" {
		warnings = append(warnings, "the kernel interprets BPF programs, which takes several times as long: sysctl -w net.core.bpf_jit_enable=1")
	}
	return warnings, nil
}

// checkRelease takes a release as uname(2) has it, such as 5.10.0-28-amd64.
func checkRelease(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("%w: its release %q is no version", ErrKernel, release)
	}
	var missing []string
	for _, f := range kernelFeatures {
		if major < f.major || major == f.major && minor < f.minor {
			missing = append(missing, fmt.Sprintf("%s (%d.%d)", f.what, f.major, f.minor))
		}
	}
	switch {
	case major > 5 || major == 5 && minor >= 15:
		return nil
	case len(missing) == 0:
		return fmt.Errorf("%w: it is %s, and 5.15 or later is needed: nothing older is tested", ErrKernel, release)
	}
	return fmt.Errorf("%w: it is %s, and 5.15 or later is needed; missing: %s", ErrKernel, release, strings.Join(missing, ", "))
}

// probe loads the smallest XDP program that there is.
func probe(flags uint32) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "probe", Type: ebpf.XDP, License: "Dual BSD/GPL", Flags: flags,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	switch {
	case err == nil:
		return prog.Close()
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: it was built without bpf(2) (CONFIG_BPF_SYSCALL): %w", ErrKernel, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("loading an XDP program is not permitted: CAP_BPF and CAP_NET_ADMIN are needed: %w", err)
	default:
		return fmt.Errorf("%w: it takes no XDP program: %w", ErrKernel, err)
	}
}

// maxMTU is what fits into one page of 4096 bytes beside the 256 bytes of
// headroom, the Ethernet header and the 320 of struct skb_shared_info: the
// limit of veth and virtio_net for programs that take a packet in one piece.
const maxMTU = 4096 - 256 - 14 - 320

// needsFrags says whether packets come in several pieces, and whether the
// kernel can do that in native mode (5.18).
func needsFrags(mtu int) (needs, can bool) {
	if mtu <= maxMTU {
		return false, false
	}
	return true, probe(unix.BPF_F_XDP_HAS_FRAGS) == nil
}
