package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/durable"
)

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	for _, text := range []string{"a long first text", "second"} {
		if err := durable.WriteFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil || string(b) != text {
			t.Fatalf("holds %q, %v, want %q", b, err, text)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left beside it: %v", err)
	}
	missing := filepath.Join(path, "below a file")
	if err := durable.WriteFile(missing, nil); storage.KindOf(err) != storage.KindIO || !strings.Contains(err.Error(), missing) {
		t.Errorf("a path that cannot be: %v", err)
	}
}

// TestWriteFileOnAFullDisk: the old bytes stay, nothing is left beside them, and the error says what to do. Guards: the case for ENOSPC,
// and its Remove. A write to /dev/full finds no room.
func TestWriteFileOnAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := durable.WriteFile(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", path+".tmp"); err != nil {
		t.Fatal(err)
	}
	err := durable.WriteFile(path, []byte("new"))
	if storage.KindOf(err) != storage.KindNoSpace || !errors.Is(err, syscall.ENOSPC) ||
		!strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
		t.Errorf("holds %q, %v", b, err)
	}
	if _, err := os.Lstat(path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left beside it: %v", err)
	}
	if err := durable.WriteFile(path, []byte("new")); err != nil { // there is room again
		t.Error(err)
	}
}
