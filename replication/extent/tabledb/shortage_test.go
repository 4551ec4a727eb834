package tabledb

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What waited for room and was ended has not found any, and nobody is told that there is some.
func TestEndOfWaitingIsNoRoom(t *testing.T) {
	for _, room := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var said strings.Builder
			var full atomic.Bool
			full.Store(true)
			s := &shortage{logger: slog.New(slog.NewTextHandler(&said, nil)), stop: make(chan struct{}), makeRoom: func() bool { return false }}
			ended := make(chan error)
			go func() {
				ended <- s.insist("a table", syscall.ENOSPC, func() error {
					if full.Load() {
						return syscall.ENOSPC
					}
					return nil
				})
			}()
			time.Sleep(5 * time.Second)
			if full.Store(!room); !room {
				s.halt()
			}
			if err := <-ended; (err == nil) != room {
				t.Errorf("room %v: %v", room, err)
			}
			if got := strings.Contains(said.String(), "there is room"); got != room || !strings.Contains(said.String(), syscall.ENOSPC.Error()) {
				t.Errorf("room %v, and it says:\n%s", room, said.String())
			}
		})
	}
}
