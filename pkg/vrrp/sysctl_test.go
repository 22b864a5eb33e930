package vrrp

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLooseARP(t *testing.T) {
	root := t.TempDir()
	set := func(device, ignore, announce string) {
		dir := filepath.Join(root, device)
		must(t, "making a directory", os.MkdirAll(dir, 0o700))
		must(t, "writing", os.WriteFile(filepath.Join(dir, "arp_ignore"), []byte(ignore+"\n"), 0o600))
		must(t, "writing", os.WriteFile(filepath.Join(dir, "arp_announce"), []byte(announce+"\n"), 0o600))
	}
	set("all", "0", "0")
	set("loose", "0", "0")
	set("half", "1", "0")
	set("tight", "1", "2")
	set("odd", "x", "2")
	devices := []string{"loose", "half", "tight", "odd", "missing"}
	if got, want := looseARP(root, devices), []string{"loose", "half"}; !slices.Equal(got, want) {
		t.Errorf("loose: %q, want %q", got, want)
	}
	set("all", "1", "2")
	if got := looseARP(root, devices); len(got) != 0 {
		t.Errorf("with all set: %q", got)
	}
}
