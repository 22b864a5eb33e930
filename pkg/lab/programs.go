package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// daemonPrograms are those that the lab runs.
var daemonPrograms = []string{"pgsteerd", "pgsteer-pooler"}

// programFile is where the lab's copy of a program is. The poolers run as a
// user who may have no way to where it was built, below /root for example.
func (l *Lab) programFile(name string) string { return filepath.Join(l.data, "bin", name) }

// installPrograms copies the daemons' programs. It returns the paths of those
// that had been there already but were another build.
func (l *Lab) installPrograms(binDir string) (replaced map[string]bool, err error) {
	replaced = map[string]bool{}
	if err := os.MkdirAll(filepath.Join(l.data, "bin"), 0o755); err != nil {
		return nil, fmt.Errorf("installing the programs: %w", err)
	}
	for _, name := range daemonPrograms {
		from, to := filepath.Join(binDir, name), l.programFile(name)
		src, err := os.Stat(from)
		if err != nil {
			return nil, fmt.Errorf("installing the programs: %w", err)
		}
		dst, err := os.Stat(to)
		if err == nil && dst.Size() == src.Size() && dst.ModTime().Equal(src.ModTime()) {
			continue
		}
		replaced[to] = err == nil
		if err := copyProgram(from, to, src); err != nil {
			return nil, fmt.Errorf("installing the programs: %w", err)
		}
	}
	return replaced, nil
}

// copyProgram copies an executable file together with its time. A process that
// runs the old one keeps it.
func copyProgram(from, to string, info os.FileInfo) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp := to + ".new"
	dst, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	if err := os.Chtimes(tmp, info.ModTime(), info.ModTime()); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}
