package main

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// limitMemory has the garbage collector keep the process below the limit of its control group, where there is one, by working
// harder, before the kernel ends it: a gateway that is ended so takes its FUSE devices with it, where nothing else holds them.
// GOMEMLIMIT says otherwise.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := memoryLimit("/proc/self/cgroup", "/sys/fs/cgroup"); limit > 0 {
		debug.SetMemoryLimit(limit / 10 * 9) // beside Go's memory there is the program itself, and what the kernel counts in
	}
}

// memoryLimit returns the smallest limit of the control groups (version 2) that the process is in, in bytes; 0: there is none.
func memoryLimit(self, root string) (limit int64) {
	text, err := os.ReadFile(self)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for dir := filepath.Clean("/" + group); ; dir = filepath.Dir(dir) {
			max, err := os.ReadFile(filepath.Join(root, dir, "memory.max"))
			if n, bad := strconv.ParseInt(strings.TrimSpace(string(max)), 10, 64); err == nil && bad == nil && n > 0 && (limit == 0 || n < limit) {
				limit = n
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit
}
