package server

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/storaged/storaged"
)

// TestClearSocket: a socket that a process left behind is removed, one that is listened on and other files are not.
func TestClearSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nbd")
	if err := clearSocket(path); err != nil {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := clearSocket(path); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("a living socket: %v", err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := clearSocket(path); err != nil {
		t.Errorf("a dead socket: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead socket is still there: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := clearSocket(path); err != nil {
		t.Errorf("a file: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a file was removed: %v", err)
	}
}
