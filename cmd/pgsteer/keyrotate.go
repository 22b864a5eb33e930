package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

// A rotation is a step by which one key follows another, without the nodes
// losing each other: any step links with the one before and the one after.
type rotation struct {
	word   string
	change func([]byte) ([]byte, error)
	next   string // what to do then
}

func rotations() []rotation {
	return []rotation{
		{"add", flowsync.AddKey, "When sync show has a link again on both, go on with: pgsteer keygen promote %s"},
		{"promote", flowsync.PromoteKey, "When KEY and PEER-KEY of sync show are the new key on both, go on with: pgsteer keygen retire %s"},
		{"retire", flowsync.RetireKeys, "Then the old key is worth nothing."},
	}
}

// rotate changes a key file, and says what to do with it.
func rotate(s *session, r rotation, path string) error {
	key, err := rewriteSecret(path, r.change)
	if err != nil {
		return err
	}
	all := key.Fingerprints()
	if s.out.json {
		return s.out.value(map[string]any{"file": path, "fingerprint": all[0], "accepted": all})
	}
	next := r.next
	if strings.Contains(next, "%s") {
		next = fmt.Sprintf(next, path)
	}
	return s.out.remark("%s: shows key %s, accepts %s\nCopy it to the other node as the same file, mode 0600, then restart pgsteerd on both, one after the other.\n%s\n",
		path, all[0], strings.Join(all, " "), next)
}

// rewriteSecret replaces a key file as a whole, or leaves it as it is. Whoever
// owns it goes on owning it, alone.
func rewriteSecret(path string, change func([]byte) ([]byte, error)) (*flowsync.Key, error) {
	path, err := filepath.EvalSymlinks(path) // a link stays one
	if err != nil {
		return nil, fmt.Errorf("reading the key file: %w", err)
	}
	if _, err := flowsync.LoadKey(path); err != nil { // also its mode
		return nil, err
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key file: %w", err)
	}
	text, err := change(old)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key file: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("writing the key file: %w", err)
	}
	_, err = f.Write(text)
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && err == nil {
		err = f.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		err = f.Sync()
	}
	var key *flowsync.Key
	if err = errors.Join(err, f.Close()); err == nil {
		key, err = flowsync.LoadKey(f.Name()) // as pgsteerd will
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the key file: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return key, syncDirectory(filepath.Dir(path))
}

// syncDirectory has a rename outlive a power cut.
func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("writing the key file: %w", err)
	}
	return nil
}
