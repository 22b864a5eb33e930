package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTakeover: the program in the background replaces the one that runs, which
// says so to the service manager and ends.
func TestTakeover(t *testing.T) {
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	notified := func() string {
		b := make([]byte, 100)
		if err := manager.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(b)
		if err != nil {
			t.Fatalf("waiting for a notification: %v", err)
		}
		return string(b[:n])
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	ini, users, pidfile := filepath.Join(dir, "pooler.ini"), filepath.Join(dir, "users.txt"), filepath.Join(dir, "pid")
	text := fmt.Sprintf("[databases]\n* = host=127.0.0.1\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"auth_type = trust\nauth_file = %s\npool_mode = transaction\npidfile = %s\n", port, users, pidfile)
	if err := errors.Join(os.WriteFile(ini, []byte(text), 0o600), os.WriteFile(users, []byte("\"a\" \"b\"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	program := func(args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), "POOLER_TEST_MAIN=1", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "RUNTIME_DIRECTORY="+dir)
		errOut := new(bytes.Buffer)
		cmd.Stderr = errOut
		return cmd, errOut
	}
	old, oldOut := program(ini)
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	if got := notified(); got != "READY=1" {
		t.Fatalf("notified %q", got)
	}

	// A configuration that makes no sense changes nothing.
	bad := filepath.Join(dir, "bad.ini")
	if err := os.WriteFile(bad, []byte(text+"nonsense = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, out := program("-R", "-d", bad)
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != exitUsage {
		t.Errorf("with a bad file: %v\n%s", err, out)
	}

	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd, _ = program("-takeover", "-d", ini)
	cmd.Stderr = log
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("takeover: %v\n%s", err, text)
	}
	main := notified()
	pid, err := strconv.Atoi(strings.TrimPrefix(main, "MAINPID="))
	if err != nil || pid == old.Process.Pid {
		t.Fatalf("notified %q", main)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // it is gone if all is well
	if err := old.Wait(); err != nil {
		t.Errorf("the old process: %v\n%s", err, oldOut)
	}
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatalf("the new process: %v", err)
	}
	conn.Close()
	if text, err := os.ReadFile(pidfile); err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(pid) {
		t.Errorf("pidfile %q, %v; want %d", text, err, pid)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := notified(); got != "STOPPING=1" {
		t.Errorf("notified %q", got)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		text, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "msg=stopped") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new process has not ended:\n%s", text)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
