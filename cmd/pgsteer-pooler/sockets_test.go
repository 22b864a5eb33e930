package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestGivenSockets: the program listens at the socket that it was started with, in
// which clients have waited since before it was.
func TestGivenSockets(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	early, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	ini, users := filepath.Join(dir, "pooler.ini"), filepath.Join(dir, "users.txt")
	text := fmt.Sprintf("[databases]\n* = host=127.0.0.1\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"auth_type = trust\nauth_file = %s\npool_mode = transaction\n", ln.Addr().(*net.TCPAddr).Port, users)
	if err := errors.Join(os.WriteFile(ini, []byte(text), 0o600), os.WriteFile(users, []byte("\"a\" \"b\"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	// As systemd does it: descriptor 3, for the process that the shell becomes.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$1"`, os.Args[0], ini)
	cmd.Env = append(os.Environ(), "POOLER_TEST_MAIN=1")
	cmd.ExtraFiles = []*os.File{socket}
	var errOut strings.Builder
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A request for TLS is answered: by "N", since there is none.
	answer := make([]byte, 1)
	err = errors.Join(early.SetDeadline(time.Now().Add(20*time.Second)), write(early, "\x00\x00\x00\x08\x04\xd2\x16\x2f"))
	if _, rerr := early.Read(answer); err != nil || rerr != nil || answer[0] != 'N' {
		t.Errorf("answer %q, %v", answer, errors.Join(err, rerr))
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("%v\n%s", err, &errOut)
	}
}

func write(conn net.Conn, text string) error {
	_, err := conn.Write([]byte(text))
	return err
}
