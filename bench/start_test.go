package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestStartFlags: what cannot be measured is refused, with every problem at once; the data grow in whole MiB to all of it.
func TestStartFlags(t *testing.T) {
	cfg, err := parseStartFlags([]string{"-live", "1GiB"})
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.liveBytes(); !slices.Equal(got, []int64{256 * mib, 512 * mib, 1024 * mib}) {
		t.Errorf("measured at %v", got)
	}
	for _, args := range [][]string{{"-live", "63MiB"}, {"-live", "x"}, {"-warm", "1MiB"}, {"-nodes", "2"}, {"-rounds", "0"}, {"-timeout", "1ms"}} {
		if _, err := parseStartFlags(args); err == nil {
			t.Errorf("%v are taken", args)
		}
	}
	_, err = parseStartFlags([]string{"-nodes", "4", "-rounds", "0"})
	if err == nil || !strings.Contains(err.Error(), "-nodes") || !strings.Contains(err.Error(), "-rounds") {
		t.Errorf("two problems, and of them it says %v", err)
	}
}

// TestLogWatch: the log is full when it is nearly as long as it ever was between two checkpoints, not before enough was seen, and at
// last in any case.
func TestLogWatch(t *testing.T) {
	for _, c := range []struct {
		name string
		see  []logCounts
		full []bool
		last float64 // bytes since the last checkpoint
	}{
		{"checkpoints every 100", []logCounts{{90, 0}, {110, 1}, {210, 2}, {290, 2}, {305, 2}, {310, 3}, {395, 3}, {400, 3}},
			[]bool{false, false, false, false, true, false, false, true}, 90},
		{"the first stretch says nothing", []logCounts{{290, 1}, {310, 2}, {330, 2}}, []bool{false, false, true}, 20},
		{"no checkpoint", []logCounts{{200, 0}, {300, 0}}, []bool{false, true}, 300},
		{"one stretch that was longer than all others", []logCounts{{10, 1}, {1000, 2}, {1010, 3}, {2390, 4}, {2410, 5}}, []bool{false, false, false, false, true}, 0},
	} {
		w := logWatch{warm: 300}
		for i, now := range c.see {
			w.see(now)
			if w.full != c.full[i] {
				t.Errorf("%s: after %+v full is %t", c.name, now, w.full)
			}
		}
		if w.length != c.last {
			t.Errorf("%s: %v bytes since the last checkpoint, want %v", c.name, w.length, c.last)
		}
	}
}

// TestParseIO: the counters are those of proc(5), and a kernel without them is an error.
func TestParseIO(t *testing.T) {
	const text = "rchar: 4096\nwchar: 1\nsyscr: 2\nsyscw: 3\nread_bytes: 8192\nwrite_bytes: 5\ncancelled_write_bytes: 0\n"
	c, err := parseIO(text)
	if err != nil || c["rchar"] != 4096 || c["read_bytes"] != 8192 {
		t.Errorf("%v, %v", c, err)
	}
	for _, bad := range []string{"", "rchar: 1\n", strings.Replace(text, "8192", "x", 1)} {
		if _, err := parseIO(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestForget: every file can be put out of the page cache and is what it was, and segments are counted.
func TestForget(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "segments"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"node.json", "segments/0000000001.seg", "segments/0000000002.seg", "segments/0000000003.seg.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n, err := forget(dir)
	if err != nil || n != 2 {
		t.Errorf("%d segments, %v", n, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "node.json")); err != nil || string(b) != "node.json" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := forget(filepath.Join(dir, "gone")); err == nil {
		t.Error("a directory that is not there has no error")
	}
}

// TestMedianStart: each figure is its own median, and the plot has a point for each row and figure.
func TestMedianStart(t *testing.T) {
	m := medianStart([]startRow{
		{Nodes: 3, LiveBytes: 7, LogBytes: 1, Segments: 3, ReadyMs: 5, WriteMs: 1, ReadBytes: 2, AskedFor: 9},
		{Nodes: 3, LiveBytes: 7, LogBytes: 2, Segments: 1, ReadyMs: 4, WriteMs: 3, ReadBytes: 1, AskedFor: 8},
		{Nodes: 3, LiveBytes: 7, LogBytes: 3, Segments: 2, ReadyMs: 9, WriteMs: 2, ReadBytes: 3, AskedFor: 7},
	})
	if want := (startRow{Nodes: 3, LiveBytes: 7, LogBytes: 2, Segments: 2, ReadyMs: 5, WriteMs: 2, ReadBytes: 2, AskedFor: 8}); m != want {
		t.Errorf("%+v, want %+v", m, want)
	}
	if n := circles(elements(t, plotStart([]startRow{{LiveBytes: 1 << 30}, {LiveBytes: 2 << 30}}))); n != 2*len(startFigures) {
		t.Errorf("%d points", n)
	}
}
