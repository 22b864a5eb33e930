package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// readyVariable names the environment variable with the descriptor at which a
// process in the background says that it is ready.
const readyVariable = "PGSTEER_POOLER_READY_FD"

// background starts this program anew without -d, in a session of its own, and
// waits until it is ready, or has failed.
func background(args []string, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "pgsteer-pooler: starting in the background: %v\n", err)
		return exitFailure
	}
	program, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	cmd := exec.Command(program, withoutBackground(args)...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fail(err)
	}
	if line, err := bufio.NewReader(r).ReadString('\n'); err == nil && line == "ready\n" {
		return exitOK
	}
	// It has said why.
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code > 0 {
		return code
	}
	return exitFailure
}

func withoutBackground(args []string) []string {
	var rest []string
	for _, a := range args {
		if a != "-d" && a != "--d" && a != "-daemon" && a != "--daemon" {
			rest = append(rest, a)
		}
	}
	return rest
}

// sayReady tells the process that started us in the background that it may go.
func sayReady() error {
	text := os.Getenv(readyVariable)
	if text == "" {
		return nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return fmt.Errorf("%s=%q is no descriptor", readyVariable, text)
	}
	f := os.NewFile(uintptr(fd), "ready")
	defer f.Close()
	_, err = io.WriteString(f, "ready\n")
	return err
}

// controlSocket returns the path of the control socket: that of the
// configuration, or one in the runtime directory that systemd has made.
func controlSocket(configured string, port int) string {
	dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	if configured != "" || dir == "" {
		return configured
	}
	return filepath.Join(dir, fmt.Sprintf("pooler-%d.sock", port))
}

// givenSockets returns the listening sockets that systemd has opened for us.
func givenSockets(log *slog.Logger) ([]*net.TCPListener, error) {
	list, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("taking sockets of the service manager: %w", err)
	}
	var sockets []*net.TCPListener
	for _, ln := range list {
		if tcp, ok := ln.(*net.TCPListener); ok {
			sockets = append(sockets, tcp)
		} else {
			log.Warn("socket of the service manager is not used: it does not listen at a TCP port")
		}
	}
	return sockets, nil
}
