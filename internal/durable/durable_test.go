package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
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
