package doors

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A flood of refusals is a line of the log a minute and port, and for half a minute something that is wrong with the process.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := NewRefusals(slog.New(slog.NewTextHandler(&log, nil)))
		nbd, api := r.Port("NBD", 21), r.Port("API", 7)
		if lines := r.Lately(); len(lines) != 0 {
			t.Errorf("before anything was refused: %q", lines)
		}
		from := &net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 4}
		for range 200 {
			nbd(from)
		}
		time.Sleep(15 * time.Second)
		api(from)
		if n := strings.Count(log.String(), "closed at once"); n != 2 {
			t.Errorf("%d lines are logged, want one for each port:\n%s", n, log.String())
		}
		lines := r.Lately()
		if len(lines) != 2 || !strings.Contains(lines[0], "API port") || !strings.Contains(lines[1], "NBD port") ||
			!strings.Contains(lines[1], "200") || !strings.Contains(lines[1], "192.0.2.7") || !strings.Contains(lines[1], "21 are served") {
			t.Errorf("%q", lines)
		}
		time.Sleep(15 * time.Second)
		if lines := r.Lately(); len(lines) != 1 || !strings.Contains(lines[0], "API port") {
			t.Errorf("half a minute after the last refusal of the NBD port: %q", lines)
		}
		time.Sleep(30 * time.Second)
		nbd(from)
		if n := strings.Count(log.String(), "closed at once"); n != 3 {
			t.Errorf("%d lines after a minute, want 3", n)
		}
	})
}
