package main

import (
	"testing"
	"time"
)

// TestRepairFlags: what cannot be measured is refused.
func TestRepairFlags(t *testing.T) {
	if cfg, err := parseRepairFlags([]string{"-live", "1GiB", "-time", "5s"}); err != nil || cfg.live != 1<<30 || cfg.perRun != 5*time.Second {
		t.Errorf("%+v, %v", cfg, err)
	}
	for _, args := range [][]string{{"-live", "1MiB"}, {"-depth", "0"}, {"-time", "1500ms"}, {"-time", "0s"}, {"-repair-after", "1s"}} {
		if _, err := parseRepairFlags(args); err == nil {
			t.Errorf("%v are taken", args)
		}
	}
}

// TestBusyness: idle and waiting is not busy, guests are counted once, and shares are of all processors.
func TestBusyness(t *testing.T) {
	const stat = "cpu  100 20 30 10000 5000 4 6 40 50 60\ncpu0 1 2 3 4\n"
	if got := parseCPU([]byte(stat)); got != 2*time.Second {
		t.Errorf("busy for %v, want 2s", got)
	}
	at := time.Now()
	cpu, disk := busyness{at.Add(2 * time.Second), time.Second, time.Second}.since(busyness{at: at})
	if cpu <= 0 || cpu > 50 || disk != 50 {
		t.Errorf("CPU %v %%, disk %v %%", cpu, disk)
	}
}
