package unixsocket

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListen: a socket that a process left behind is taken over; one that somebody listens on, and what is no socket, is not.
func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "socket") // t.TempDir's may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	living, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v: %v", info.Mode(), err)
	}
	if l, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another process answers there") {
		t.Errorf("a second listener: %v, %v", l, err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first is not reached any more: %v", err)
	} else {
		conn.Close()
	}
	living.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := living.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := Listen(path)
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there after Close: %v", err)
	}
	file := filepath.Join(dir, "data")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(file); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("in the place of a file: %v, %v", l, err)
	}
	if text, err := os.ReadFile(file); string(text) != "kept" {
		t.Errorf("the file is %q: %v", text, err)
	}
}
