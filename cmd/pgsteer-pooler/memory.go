package main

import (
	"bytes"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
)

// defaultMemory is for the instance of 512 MB that this pooler is made for, where
// no cgroup says what there is.
const defaultMemory = 512 << 20

// memoryFor returns how much of an instance's memory Go may take before it
// collects garbage at any price: three quarters. What is left is for the kernel's
// socket buffers, which count too.
func memoryFor(limit int64) int64 {
	if limit <= 0 {
		limit = defaultMemory
	}
	return limit / 4 * 3
}

// cgroupMemory returns the memory limit of this process, in bytes: the lowest of
// its cgroup (version 2) and those above it. 0: none. Membership is the file
// /proc/self/cgroup, root where the hierarchy is mounted (cgroups(7)).
func cgroupMemory(membership, root string) int64 {
	b, err := os.ReadFile(membership)
	if err != nil {
		return 0
	}
	lowest := int64(math.MaxInt64)
	for line := range bytes.Lines(b) {
		group, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::"))
		if !ok {
			continue // of version 1
		}
		for dir := path.Clean("/" + string(group)); ; dir = path.Dir(dir) {
			// The root has no such file, and "max" is no number.
			if text, err := os.ReadFile(filepath.Join(root, dir, "memory.max")); err == nil {
				if n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64); err == nil && n > 0 {
					lowest = min(lowest, n)
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	if lowest == math.MaxInt64 {
		return 0
	}
	return lowest
}
