package watchdog

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
)

func environment(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestFromEnvironment(t *testing.T) {
	for name, tc := range map[string]struct {
		says   []string
		within time.Duration // 0: none
		bad    bool
	}{
		"nothing":             {nil, 0, false},
		"no watchdog":         {[]string{"NOTIFY_SOCKET", "/s"}, 0, false},
		"no socket":           {[]string{"WATCHDOG_USEC", "60000000"}, 0, false},
		"asked":               {[]string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "60000000"}, time.Minute, false},
		"asked by number":     {[]string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "60000000", "WATCHDOG_PID", "7"}, time.Minute, false},
		"its parent is asked": {[]string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "60000000", "WATCHDOG_PID", "8"}, 0, false},
		"no number":           {[]string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "1min"}, 0, true},
		"never":               {[]string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "9223372036854775807"}, 0, true},
		"at once":             {[]string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "0"}, 0, true},
	} {
		w, err := FromEnvironment(environment(tc.says...), 7)
		switch {
		case tc.bad != (storage.KindOf(err) == storage.KindInvalid && err != nil):
			t.Errorf("%s: %v", name, err)
		case (tc.within != 0) != (w != nil), w != nil && w.within != tc.within:
			t.Errorf("%s: %+v, want %v", name, w, tc.within)
		}
	}
}

// TestTellsWhileAlive: a word goes out for each check that succeeds, and for no other. The line is the one in once that returns what alive
// does.
func TestTellsWhileAlive(t *testing.T) {
	dir, err := os.MkdirTemp("", "watchdog") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	socket := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	w := &Watchdog{socket: socket, within: time.Minute}
	for _, found := range []error{nil, errors.New("it hangs"), errors.New("it hangs"), nil, errors.New("it hangs")} {
		if err := w.once(t.Context(), func(context.Context) error { return found }); !errors.Is(err, found) {
			t.Fatalf("a check that finds %v: %v", found, err)
		}
		if found != nil {
			continue // were a word sent, it would be left at the end
		}
		word := make([]byte, 64)
		n, err := manager.Read(word)
		if err != nil || string(word[:n]) != "WATCHDOG=1" {
			t.Fatalf("told %q, %v", word[:n], err)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.once(over, func(context.Context) error { return nil }); err == nil {
		t.Error("a process that ends says that it lives")
	}
	end, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = end.Close() }()
	if _, err := end.Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 64)
	if n, err := manager.Read(word); err != nil || string(word[:n]) != "end" {
		t.Errorf("more was told than checks have succeeded: %q, %v", word[:n], err)
	}
}

// TestManagerDoesNotRead: words that nobody reads fill the manager's socket, and hold nobody up. The line is the one in once with the write's
// deadline.
func TestManagerDoesNotRead(t *testing.T) {
	dir, err := os.MkdirTemp("", "watchdog")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	socket := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	w := &Watchdog{socket: socket, within: 40 * time.Millisecond}
	for n := 0; ; n++ {
		err := w.once(t.Context(), func(context.Context) error { return nil })
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil || n > 1<<20 {
			t.Fatalf("word %d: %v", n, err)
		}
	}
}
