package lab

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"pgsteer": true, "a": true, "test-2": true, "0": true,
		"": false, "-a": false, "A": false, "a/b": false, "..": false, "a b": false, strings.Repeat("a", 32): false,
	} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestPeerOf(t *testing.T) {
	if got := peerOf(mustHost(LB1)).name; got != LB2 {
		t.Errorf("the peer of %s is %s", LB1, got)
	}
	if got := peerOf(mustHost(LB2)).name; got != LB1 {
		t.Errorf("the peer of %s is %s", LB2, got)
	}
}

func TestFindHost(t *testing.T) {
	want := `there is no host "lb3" in the lab, only [client lb1 lb2 pooler db]`
	if _, err := findHost("lb3"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Each host has a name and addresses of its own, also in a lab that has all.
func TestHostsDiffer(t *testing.T) {
	if n := len((Options{}).hosts()); n != len(hosts) {
		t.Errorf("the classic picture has %d hosts", n)
	}
	seen := map[string]bool{}
	for _, h := range everything.hosts() {
		for _, s := range []string{h.name, h.addr.String(), h.addr6.String()} {
			if seen[s] {
				t.Errorf("%s comes twice", s)
			}
			seen[s] = true
		}
	}
	if !seen[Gateway] || !seen[Spare1] || !seen[Spare2] {
		t.Errorf("not all hosts are there: %v", seen)
	}
}

// The hosts must run with the settings that are installed on real machines.
func TestSysctlsAreThoseInstalled(t *testing.T) {
	f, err := os.Open(filepath.Join("..", "..", "deploy", "sysctl.d", "60-pgsteer.conf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	installed := map[string]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := strings.TrimSpace(sc.Text())
		key, value, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") {
			installed[strings.ReplaceAll(strings.TrimSpace(key), ".", "/")] = strings.TrimSpace(value)
		}
	}
	if len(installed) == 0 {
		t.Fatal("the installed file has no settings")
	}
	for key, value := range installed {
		if productSysctls[key] != value {
			t.Errorf("%s is %q where pgsteer is installed, %q in the lab", key, value, productSysctls[key])
		}
	}
	for key := range productSysctls {
		if _, ok := installed[key]; !ok {
			t.Errorf("%s is set in the lab only", key)
		}
	}
}

func TestOptionsSame(t *testing.T) {
	a, b := Options{Name: "x", BinDir: "/b"}, Options{Name: "x", BinDir: "/b"}
	if err := errors.Join(a.setDefaults(), b.setDefaults()); err != nil {
		t.Fatal(err)
	}
	if !a.same(b) {
		t.Error("equal options differ")
	}
	b.Balancer.TimeWait = time.Second
	if a.same(b) {
		t.Error("different options are the same")
	}
}

// A state of before a restart of the machine is not taken for one of now.
func TestLoad(t *testing.T) {
	l := &Lab{name: "x", dir: t.TempDir()}
	if _, err := l.load(); !errors.Is(err, ErrNotUp) {
		t.Errorf("without a state: got %v", err)
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	saved := &state{BootID: boot, Complete: true, Processes: map[string]identity{"a": {PID: 7, StartTime: 9}}}
	if err := l.save(saved); err != nil {
		t.Fatal(err)
	}
	if got, err := l.load(); err != nil || !got.Complete || got.Processes["a"] != saved.Processes["a"] {
		t.Errorf("got %+v, %v", got, err)
	}
	saved.BootID = "another"
	if err := l.save(saved); err != nil {
		t.Fatal(err)
	}
	if _, err := l.load(); !errors.Is(err, ErrNotUp) || !strings.Contains(err.Error(), "restarted") {
		t.Errorf("with a state of another boot: got %v", err)
	}
	if err := os.WriteFile(l.stateFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.load(); err == nil || errors.Is(err, ErrNotUp) || !strings.Contains(err.Error(), l.stateFile()) {
		t.Errorf("with a broken state: got %v", err)
	}
}

// A copied program is known by its time and size, and is copied again when the
// original is another.
func TestInstallPrograms(t *testing.T) {
	l, from := &Lab{data: t.TempDir()}, t.TempDir()
	write := func(text string, at time.Time) {
		for _, name := range daemonPrograms {
			path := filepath.Join(from, name)
			if err := errors.Join(os.WriteFile(path, []byte(text), 0o755), os.Chtimes(path, at, at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	begin := time.Now()
	for _, c := range []struct {
		text     string
		at       time.Time
		replaced bool
	}{
		{"one", begin, false}, {"one", begin, false}, {"two", begin.Add(time.Second), true}, {"longer", begin.Add(time.Second), true},
	} {
		write(c.text, c.at)
		replaced, err := l.installPrograms(from)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range daemonPrograms {
			path := l.programFile(name)
			if b, err := os.ReadFile(path); err != nil || string(b) != c.text || replaced[path] != c.replaced {
				t.Errorf("%s is %q (want %q), replaced %v, %v", name, b, c.text, replaced[path], err)
			}
		}
	}
	if _, err := l.installPrograms(t.TempDir()); err == nil {
		t.Error("programs that are not there were installed")
	}
}

// A process that has ended is recognised, also as our own zombie, and so is
// one that has taken over its number.
func TestIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if letter, alive := id.state(); !alive || letter == 'T' {
		t.Errorf("a running process is %q, alive %v", letter, alive)
	}
	if age := id.age(); age < -time.Second || age > time.Minute {
		t.Errorf("its age is %v", age)
	}
	other := identity{PID: id.PID, StartTime: id.StartTime + 1}
	if other.alive() {
		t.Error("a process with another start time is taken for the same")
	}
	if err := other.signal(syscall.SIGKILL); err != nil {
		t.Errorf("signalling a process that is gone: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := id.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a living process, cancelled: got %v", err)
	}
	if !id.alive() {
		t.Fatal("the process was killed in another's place")
	}
	if err := id.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := id.wait(ctx); err != nil {
		t.Fatal(err)
	}
	if id.alive() {
		t.Error("a killed process is alive")
	}
	if st, err := readStat(id.PID); err != nil || st.state != 'Z' {
		t.Errorf("waiting for the process took its exit status: %v", err)
	}
	id.reap()
	if _, err := readStat(id.PID); err == nil {
		t.Error("a zombie stays")
	}
	if err := id.wait(ctx); err != nil {
		t.Errorf("waiting for a process that is gone: %v", err)
	}
}

func TestDescendants(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	id, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	children, err := id.descendants()
	if err != nil || len(children) != 1 {
		t.Fatalf("got %v, %v, want one child", children, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := new(Lab).endTree(ctx, id); err != nil {
		t.Fatal(err)
	}
	if id.alive() || children[0].alive() {
		t.Error("the tree is alive")
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "ours")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	env := []string{"A=b", "PATH=/nowhere:" + dir}
	if got, err := lookPath("ours", env); err != nil || got != program {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := lookPath("./here", env); err != nil || got != "./here" {
		t.Errorf("got %q, %v", got, err)
	}
	want := `there is no program "data" in the PATH`
	if _, err := lookPath("data", env); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestUntil(t *testing.T) {
	calls := 0
	err := until(t.Context(), func(context.Context) error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("got %v after %d calls", err, calls)
	}
	late := errors.New("took too long")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, late)
	defer cancel()
	err = until(ctx, func(context.Context) error { return os.ErrNotExist })
	if !errors.Is(err, late) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the error %q does not tell both why it ended and what was wrong", err)
	}
}
