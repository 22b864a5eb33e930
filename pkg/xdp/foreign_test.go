package xdp

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestAnotherProgramIsNamedAndLeftAlone(t *testing.T) {
	for _, test := range []struct{ name, want string }{
		{"somebodys", `another XDP program is attached on lan0, which is not pinned in PINS: "somebodys", program id ID, loaded by user 0`},
		{dispatcher, `"xdp_dispatcher", program id ID, which runs the programs of libxdp's users`},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, ns := newHost(t)
			inNamespace(t, ns, func() error {
				prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
					Name: test.name, Type: ebpf.XDP, License: "GPL",
					Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
				})
				if err != nil {
					return err
				}
				defer prog.Close()
				lan0, err := netlink.LinkByName("lan0")
				if err != nil {
					return err
				}
				l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: lan0.Attrs().Index})
				if err != nil {
					return err
				}
				defer l.Close()
				info, err := prog.Info()
				if err != nil {
					return err
				}
				id, _ := info.ID()
				b, err := Open(cfg)
				if err == nil {
					return errors.Join(errors.New("accepted"), b.Close())
				}
				for _, want := range []string{strings.NewReplacer("PINS", cfg.PinPath, "ID", fmt.Sprint(id)).Replace(test.want), "bpftool net show dev lan0"} {
					if !errors.Is(err, ErrForeignProgram) || !strings.Contains(err.Error(), want) {
						t.Errorf("error %q, want %q", err, want)
					}
				}
				if lan0, err = netlink.LinkByName("lan0"); err != nil || lan0.Attrs().Xdp.ProgId != uint32(id) {
					t.Errorf("it is gone: %+v, %v", lan0, err)
				}
				return nil
			})
		})
	}
}

// This process holds the program of its own fixture; it is found by the fdinfo
// that another process would have.
func TestHoldersOfAProgram(t *testing.T) {
	f := newFixture(t)
	info, err := f.progs.Balancer.Info()
	f.must(err)
	id, _ := info.ID()
	if who := holders(uint32(id)); len(who) != 0 {
		t.Errorf("held by %v, and this process is not meant", who)
	}
	read, write, err := os.Pipe()
	f.must(err)
	defer write.Close()
	defer read.Close()
	// One of its own: a file closes what it was made of when it is collected.
	fd, err := unix.Dup(f.progs.Balancer.FD())
	f.must(err)
	program := os.NewFile(uintptr(fd), "program")
	pass, err := os.StartProcess("/bin/cat", []string{"cat"}, &os.ProcAttr{
		Files: []*os.File{read, os.Stdout, os.Stderr, program},
	})
	f.must(err)
	f.must(program.Close())
	want := fmt.Sprintf("[cat (pid %d)]", pass.Pid)
	eventually(t, want, func() string { return fmt.Sprint(holders(uint32(id))) })
	f.must(write.Close())
	_, err = pass.Wait()
	f.must(err)
}

func TestKernelReleases(t *testing.T) {
	for _, test := range []struct{ release, want string }{
		{"5.15.0-91-generic", ""},
		{"6.18.44", ""},
		{"7.0-rc1", ""},
		{"5.10.0-28-amd64", "it is 5.10.0-28-amd64, and 5.15 or later is needed; missing: BPF atomic operations that return the old value (5.12), NAPI on a veth without an XDP program of its own (5.13)"},
		{"5.14.0", "5.15 or later is needed: nothing older is tested"},
		{"4.19.0", "missing: a clock of jiffies for BPF programs (5.5), batched reading"},
		{"mine", `its release "mine" is no version`},
	} {
		err := checkRelease(test.release)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.release, err)
		case test.want != "" && (!errors.Is(err, ErrKernel) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error %v, want %q", test.release, err, test.want)
		}
	}
}

func TestThisKernelIsGoodEnough(t *testing.T) {
	needRoot(t)
	if _, err := CheckKernel(); err != nil {
		t.Error(err)
	}
}
