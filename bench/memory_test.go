package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/replication/extent/table"

	storage "github.com/storaged/storaged"
)

// TestMemoryFlags: what cannot be measured is refused, with every problem at once, and what is written is a part of what is mapped.
func TestMemoryFlags(t *testing.T) {
	cfg, err := parseMemoryFlags(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.pages() * int64(cfg.volumes); got > 8<<20 || got < 8<<20-int64(cfg.volumes) {
		t.Errorf("2 TiB are %d pages", got)
	}
	if got := cfg.writtenBytes(); got > int64(cfg.mapped)/table.BlocksPerPage || got < int64(cfg.mapped)/table.BlocksPerPage*99/100 {
		t.Errorf("a block of each page is %d bytes", got)
	}
	for _, args := range [][]string{{"-mapped", "1MiB"}, {"-mapped", "65TiB"}, {"-mapped", "x"}, {"-volumes", "0"}, {"-volumes", "5000"},
		{"-blocks-per-page", "0"}, {"-blocks-per-page", "65"}, {"-reads", "101"}, {"-depth", "0"}, {"-time", "1ms"}, {"-time", "1h"}} {
		if _, err := parseMemoryFlags(args); err == nil {
			t.Errorf("%v are taken", args)
		}
	}
	_, err = parseMemoryFlags([]string{"-volumes", "0", "-depth", "0"})
	if err == nil || !strings.Contains(err.Error(), "-volumes") || !strings.Contains(err.Error(), "-depth") {
		t.Errorf("two problems, and of them it says %v", err)
	}
}

// TestPercentile: the nearest rank, of few as of many.
func TestPercentile(t *testing.T) {
	var took []time.Duration
	for i := range 200 {
		took = append(took, time.Duration(i+1))
	}
	for _, c := range []struct {
		of      []time.Duration
		percent int
		want    float64
	}{{took, 50, 100}, {took, 99, 198}, {took, 100, 200}, {took[:1], 50, 1}, {took[:1], 99, 1}, {took[:3], 50, 2}} {
		if got := percentile(c.of, c.percent); got != c.want {
			t.Errorf("p%d of %d: %v, want %v", c.percent, len(c.of), got, c.want)
		}
	}
}

// TestNoise: data has no zeroes, which a store may take for holes, and differs by seed.
func TestNoise(t *testing.T) {
	a, b := noise(storage.BlockSize, 1), noise(storage.BlockSize, 2)
	if len(a) != storage.BlockSize || slices.Contains(a, 0) || slices.Equal(a, b) {
		t.Errorf("%d bytes, equal %t", len(a), slices.Equal(a, b))
	}
}

// TestPlotMemory: a point for each row and figure.
func TestPlotMemory(t *testing.T) {
	if n := circles(elements(t, plotMemory([]memoryRow{{MappedBytes: 1 << 30}, {MappedBytes: 2 << 30}}))); n != 2*len(memoryFigures) {
		t.Errorf("%d points", n)
	}
}

// TestCommandRefuses: each subcommand reads its own flags.
func TestCommandRefuses(t *testing.T) {
	for name, flag := range map[string]string{"space": "-turns=1", "scale": "-size-mib=65", "start": "-warm=1MiB", "memory": "-blocks-per-page=65"} {
		key, _, _ := strings.Cut(flag, "=")
		if err := command(context.Background(), []string{name, flag}); err == nil || !strings.Contains(err.Error(), key+":") {
			t.Errorf("%s %s: %v", name, flag, err)
		}
	}
}
