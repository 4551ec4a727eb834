package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

// The smallest limit counts, of whichever group above; "max" is none.
func TestMemoryLimit(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("pods/memory.max", "1073741824\n")
	write("pods/a/memory.max", "max\n")
	write("pods/b/memory.max", "536870912\n")
	for group, want := range map[string]int64{"/pods/a": 1 << 30, "/pods/b": 1 << 29, "/": 0, "/none/here": 0} {
		if got := memoryLimit(write("self", "1:name=systemd:/x\n0::"+group+"\n"), root); got != want {
			t.Errorf("%s: %d, want %d", group, got, want)
		}
	}
	if got := memoryLimit(filepath.Join(root, "absent"), root); got != 0 {
		t.Errorf("without cgroups: %d", got)
	}
}

// TestSoftLimit: what is wanted counts until more lives, and never more than the control group allows.
func TestSoftLimit(t *testing.T) {
	for _, test := range []struct {
		hard int64
		m    memory
		want int64
	}{
		{0, memory{100, 50}, 400}, {0, memory{300, 50}, 500}, {0, memory{200, 99}, 400}, {450, memory{300, 50}, 450}, {300, memory{100, 50}, 300},
	} {
		if got := softLimit(400, test.hard, test.m); got != test.want {
			t.Errorf("%+v, hard %d: %d, want %d", test.m, test.hard, got, test.want)
		}
	}
	if m := memoryNow(); m.beside <= 0 || m.beside > 1<<30 || m.live < 0 {
		t.Errorf("the process has %+v", m)
	}
}

// TestKeepSmall: a node has a limit from its start on, and GOMEMLIMIT says otherwise.
func TestKeepSmall(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for env, want := range map[string]bool{"": true, "123MiB": false} {
		t.Setenv("GOMEMLIMIT", env)
		debug.SetMemoryLimit(before)
		ctx, stop := context.WithCancel(t.Context())
		stop()
		keepSmall(ctx, 1<<40)
		if got := debug.SetMemoryLimit(-1); (got != before) != want {
			t.Errorf("GOMEMLIMIT=%q: the limit is %d, and was %d", env, got, before)
		}
	}
}
