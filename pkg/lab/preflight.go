package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrNotRoot is returned to callers that are not root.
var ErrNotRoot = errors.New("only root can raise or use a lab: it is made of network namespaces, mounts and XDP programs")

func checkRoot() error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	return nil
}

// preflight checks, before anything is touched, that all programs are there.
// It returns the directory of PostgreSQL's.
func (l *Lab) preflight(o Options) (string, error) {
	for _, name := range daemonPrograms {
		path := filepath.Join(o.BinDir, name)
		fi, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("there is no program %s (build it with `make build`)", path)
		}
		if err != nil {
			return "", fmt.Errorf("looking for %s: %w", name, err)
		}
		if fi.IsDir() || fi.Mode()&0o111 == 0 {
			return "", fmt.Errorf("%s is not a program", path)
		}
	}
	for _, fs := range []string{"/proc/self/ns/net", "/proc/sys/net/ipv4"} {
		if _, err := os.Stat(fs); err != nil {
			return "", fmt.Errorf("this kernel or container cannot make network namespaces: %w", err)
		}
	}
	if _, err := os.Stat("/proc/sys/net/ipv6/conf"); err != nil {
		return "", fmt.Errorf("this kernel has no IPv6, which one of the lab's services uses: %w", err)
	}
	if _, err := databaseUser(); err != nil {
		return "", err
	}
	return findPostgres()
}
