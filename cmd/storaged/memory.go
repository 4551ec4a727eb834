package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
)

const (
	// headroom is how much a node may take for each byte of its caches before the garbage collector works harder. By itself the collector
	// lets the heap grow to twice of what lives.
	headroom = 4
	// memoryEvery is how often what lives is looked at.
	memoryEvery = 10 * time.Second
)

// limitMemory has the garbage collector keep the process below the limit of its control group, where there is one, by working
// harder, before the kernel ends it: a gateway that is ended so takes its FUSE devices with it, where nothing else holds them.
// GOMEMLIMIT says otherwise.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := hardLimit(); limit > 0 {
		debug.SetMemoryLimit(limit)
	}
}

// hardLimit is what Go may take below the limit of the control group, in bytes; 0: there is none.
func hardLimit() int64 {
	return memoryLimit("/proc/self/cgroup", "/sys/fs/cgroup") / 10 * 9 // beside Go's memory there is the program itself, and what the kernel counts in
}

// keepSmall is limitMemory for a node with caches of so many bytes: it takes headroom times as much, unless more lives, until ctx is done.
func keepSmall(ctx context.Context, caches int64) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	hard := hardLimit()
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for set := int64(-1); ; {
		if limit := softLimit(headroom*caches, hard, memoryNow()); limit != set { // to set it stops the world
			debug.SetMemoryLimit(limit)
			set = limit
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// memory is what a process has, in bytes: what lived on the heap at the last collection, and what is not the heap.
type memory struct{ live, beside int64 }

func memoryNow() memory {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	m := memory{live: int64(samples[0].Value.Uint64()), beside: int64(samples[1].Value.Uint64())}
	for _, heap := range samples[2:] {
		m.beside -= int64(heap.Value.Uint64())
	}
	return m
}

// softLimit is the memory limit of Go: what is wanted, or what lives and half as much again, so that the collector does not run all the
// time for a node that needs more than its caches; hard at most, unless that is 0.
func softLimit(wanted, hard int64, m memory) int64 {
	limit := max(wanted, m.live+m.live/2+m.beside)
	if hard > 0 {
		limit = min(limit, hard)
	}
	return limit
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
