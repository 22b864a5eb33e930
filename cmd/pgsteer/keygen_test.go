package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

// keygenWith runs keygen where neither a daemon nor pins can be reached.
func keygenWith(args ...string) result {
	return run(nil, errors.New("must not open"), "", append([]string{"keygen"}, args...)...)
}

func TestKeygen(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := filepath.Join(t.TempDir(), "sync.key")
	res := keygenWith(path)
	key, err := flowsync.LoadKey(path)
	if err != nil || res.status != exitOK {
		t.Fatalf("status %d, %s: %v", res.status, res.stderr, err)
	}
	want := path + ": key " + key.Fingerprint() + "\nCopy it to the other node as the same file, mode 0600, then restart pgsteerd on both.\n"
	if res.stdout != want {
		t.Errorf("got %q, want %q", res.stdout, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	res = keygenWith(path)
	if res.status != exitFailure || res.stderr != "pgsteer: "+path+" is there already: a key that is in use is not overwritten; remove it first\n" {
		t.Errorf("again: status %d, %s%s", res.status, res.stdout, res.stderr)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the key has changed: %v", err)
	}
}

func TestKeygenOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	load := func(text string) *flowsync.Key {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := flowsync.LoadKey(path)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	first, second := keygenWith(), keygenWith()
	if load(first.stdout).Fingerprint() == load(second.stdout).Fingerprint() {
		t.Error("twice the same key")
	}
	var v map[string]string
	if err := json.Unmarshal([]byte(keygenWith("-j").stdout), &v); err != nil || load(v["key"]) == nil {
		t.Error(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	v = nil
	err := json.Unmarshal([]byte(keygenWith("-j", path).stdout), &v)
	if key, lerr := flowsync.LoadKey(path); err != nil || lerr != nil || v["file"] != path || v["fingerprint"] != key.Fingerprint() {
		t.Errorf("%v, %v, %v", v, err, lerr)
	}
}

func TestKeygenErrors(t *testing.T) {
	for args, want := range map[string]string{
		"a b":        `keygen: nothing may follow the file, but "b" was given`,
		"/nowhere/k": "creating the key file: open /nowhere/k: no such file or directory",
	} {
		if res := keygenWith(strings.Fields(args)...); res.status == exitOK || res.stderr != "pgsteer: "+want+"\n" {
			t.Errorf("keygen %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
}
