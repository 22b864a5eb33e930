package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMemory: the lowest limit on the way to the root counts.
func TestMemory(t *testing.T) {
	const mb = 1 << 20
	for _, tt := range []struct {
		name, membership string
		limits           map[string]string
		want             int64
	}{
		{"own", "0::/a/b\n", map[string]string{"a/b": "1048576\n", "a": "max\n"}, mb},
		{"parent's", "0::/a/b\n", map[string]string{"a/b": "max\n", "a": "2097152\n"}, 2 * mb},
		{"the lower of both", "0::/a/b\n", map[string]string{"a/b": "4194304\n", "a": "2097152\n"}, 2 * mb},
		{"container, whose root is its own cgroup", "0::/\n", map[string]string{"": "3145728\n"}, 3 * mb},
		{"none", "0::/a\n", map[string]string{"a": "max\n"}, 0},
		{"version 1 beside it", "4:memory:/x\n0::/a\n", map[string]string{"x": "1048576\n", "a": "2097152\n"}, 2 * mb},
		{"version 1 only", "4:memory:/x\n", map[string]string{"x": "1048576\n"}, 0},
		{"nonsense", "0::/a\n", map[string]string{"a": "lots\n"}, 0},
		{"nothing", "", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			membership := filepath.Join(root, "self")
			if err := os.WriteFile(membership, []byte(tt.membership), 0o644); err != nil {
				t.Fatal(err)
			}
			for dir, limit := range tt.limits {
				if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, dir, "memory.max"), []byte(limit), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := cgroupMemory(membership, root); got != tt.want {
				t.Errorf("%d bytes, want %d", got, tt.want)
			}
		})
	}
	if got := cgroupMemory(filepath.Join(t.TempDir(), "none"), "/"); got != 0 {
		t.Errorf("%d bytes without /proc", got)
	}
	if memoryFor(0) != 384<<20 || memoryFor(256<<20) != 192<<20 {
		t.Errorf("%d, %d", memoryFor(0), memoryFor(256<<20))
	}
}
