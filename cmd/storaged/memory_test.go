package main

import (
	"os"
	"path/filepath"
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
