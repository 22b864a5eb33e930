package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

// names loads a key file and returns what it accepts.
func names(t *testing.T, path string) []string {
	t.Helper()
	key, err := flowsync.LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	return key.Fingerprints()
}

func TestKeyRotation(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	dir := t.TempDir()
	path, link := filepath.Join(dir, "sync.key"), filepath.Join(dir, "link")
	if res := keygenWith(path); res.status != exitOK {
		t.Fatal(res.stderr)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, 12346); err != nil {
			t.Fatal(err)
		}
	}
	old := names(t, path)[0]
	const copyIt = "\nCopy it to the other node as the same file, mode 0600, then restart pgsteerd on both, one after the other.\n"
	check := func(word, file, next string, want func(all []string) bool) []string {
		t.Helper()
		res := keygenWith(word, file)
		all := names(t, path)
		text := file + ": shows key " + all[0] + ", accepts " + strings.Join(all, " ") + copyIt + next + "\n"
		if res.status != exitOK || res.stdout != text || !want(all) {
			t.Errorf("%s: status %d, %s%s, want %s", word, res.status, res.stderr, res.stdout, text)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", word, info.Mode(), err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || os.Geteuid() == 0 && (st.Uid != 12345 || st.Gid != 12346) {
			t.Errorf("%s: it belongs to %d:%d, %v", word, st.Uid, st.Gid, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
			t.Errorf("%s leaves %v, %v", word, entries, err)
		}
		return all
	}
	all := check("add", path, "When sync show has a link again on both, go on with: pgsteer keygen promote "+path,
		func(all []string) bool { return len(all) == 2 && all[0] == old })
	next := all[1]
	check("promote", link, "When KEY and PEER-KEY of sync show are the new key on both, go on with: pgsteer keygen retire "+link,
		func(all []string) bool { return slices.Equal(all, []string{next, old}) })
	check("retire", path, "Then the old key is worth nothing.", func(all []string) bool { return slices.Equal(all, []string{next}) })
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is none any more: %v", err)
	}

	var v struct {
		File, Fingerprint string
		Accepted          []string
	}
	if err := json.Unmarshal([]byte(keygenWith("-j", "add", path).stdout), &v); err != nil || v.File != path || v.Fingerprint != next || !slices.Equal(v.Accepted, names(t, path)) {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestKeyRotationErrors(t *testing.T) {
	dir := t.TempDir()
	one, open, bad := filepath.Join(dir, "one"), filepath.Join(dir, "open"), filepath.Join(dir, "bad")
	for _, path := range []string{one, open} {
		if res := keygenWith(path); res.status != exitOK {
			t.Fatal(res.stderr)
		}
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"add":            "keygen: add needs the key file",
		"promote a b":    `keygen: nothing may follow the file, but "b" was given`,
		"promote " + one: one + ": there is only one key in it: add one first",
		"retire " + one:  one + ": there is only one key in it",
		"add " + open:    "loading the key: " + open + " is open to group or others (mode 0644); run: chmod 600 " + open,
		"add " + bad:     "loading the key: " + bad + ": there is no key in it",
		"add /nowhere/k": "reading the key file: lstat /nowhere: no such file or directory",
	} {
		if res := keygenWith(strings.Fields(args)...); res.status == exitOK || res.stderr != "pgsteer: "+want+"\n" {
			t.Errorf("keygen %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
