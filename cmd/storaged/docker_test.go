package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/unixsocket"
)

// lines keeps what is logged, for others to look at meanwhile.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// TestDockerWatchdog: the service manager is told that the plugin lives while it waits for its gateway, and while it serves; and not any
// more when nothing answers on its socket. The line is the one in dockerAlive that asks.
func TestDockerWatchdog(t *testing.T) {
	dir, err := os.MkdirTemp("", "docker") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	told := func() {
		t.Helper()
		word := make([]byte, 64)
		if n, err := manager.Read(word); err != nil || string(word[:n]) != "WATCHDOG=1" {
			t.Fatalf("told %q, %v", word[:n], err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_USEC", "400000")
	for name, more := range map[string][]string{"without a gateway": nil, "serving": {"--endpoint", "127.0.0.1:1"}} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(dir, "p.sock")
			ctx, cancel := context.WithCancel(t.Context())
			var said lines
			ended := make(chan error, 1)
			go func() {
				ended <- run(ctx, append([]string{"docker-plugin", "--socket", socket, "--state-dir", filepath.Join(dir, "state"),
					"--gateway", filepath.Join(dir, "gateway.sock")}, more...), &said, &said)
			}()
			defer func() {
				cancel()
				if err := <-ended; err != nil && more != nil {
					t.Error(err)
				}
			}()
			if more == nil {
				waitFor(t, &said, "gateway does not answer")
				told()
				told()
				return
			}
			waitFor(t, &said, "Docker plugin serves")
			told()
			told()
			if err := os.Rename(socket, socket+"-before"); err != nil { // who connects now hears nothing
				t.Fatal(err)
			}
			mute, err := unixsocket.Listen(socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = mute.Close() }()
			waitFor(t, &said, "the plugin does not answer on "+socket) // and so it has not told
		})
	}
}

func waitFor(t *testing.T, said *lines, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !said.has(text); <-time.After(5 * time.Millisecond) { // between two looks at a condition
		if time.Now().After(deadline) {
			t.Fatalf("it has not said %q, but:\n%s", text, said.text.String())
		}
	}
}
