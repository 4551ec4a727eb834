package extent

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// short fails every open while it is on, as a process without descriptors does.
type short struct {
	on  atomic.Bool
	err error
	hit atomic.Int64
}

func (s *short) String() string { return "short" }

func (s *short) MaybeError(o errorfs.Op) error {
	switch o.Kind {
	case errorfs.OpCreate, errorfs.OpOpen, errorfs.OpOpenDir, errorfs.OpReuseForWrite, errorfs.OpList:
		if s.on.Load() && !strings.Contains(o.Path, "LOCK") {
			s.hit.Add(1)
			return s.err
		}
	}
	return nil
}

// Clients use up the process's descriptors while segments are made, tables written and old segments read. The store waits,
// goes on when there are descriptors again, and has lost nothing.
func TestWithoutDescriptorsTheStoreWaits(t *testing.T) {
	for _, err := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		t.Run(err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &short{err: err}
				cfg := testConfig(errorfs.Wrap(vfs.NewCrashableMem(), s))
				cfg.MemTableBytes = 64 << 10 // tables are written out often
				cfg.Segment.MaxOpenFiles = 1
				r := newRig(t, cfg)
				r.ok(openSession(1))
				written := make(chan struct{})
				go func() {
					defer close(written)
					for i := range uint32(400) {
						if i == 50 {
							s.on.Store(true)
						}
						r.ok(r.write(0, i%200*4096, blocks(uint64(i), 1)))
						if i%20 == 0 {
							r.checkpoint()
						}
					}
				}()
				time.Sleep(time.Minute)
				select {
				case <-written:
					t.Error("all was written without descriptors: the test shows nothing")
				default:
				}
				if err := r.s.Failed(); err != nil {
					t.Fatalf("the disk has failed: %v", err)
				}
				if s.hit.Load() == 0 {
					t.Error("nothing was opened: the test shows nothing")
				}
				s.on.Store(false)
				<-written
				for i := range uint32(200) {
					r.wantRead(0, i*4096, blocks(uint64(200+i), 1))
				}
				if err := r.s.Failed(); err != nil {
					t.Errorf("the disk has failed: %v", err)
				}
				if err := r.s.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A store that is opened without descriptors says so after a while.
func TestOpenWithoutDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &short{err: syscall.EMFILE}
		s.on.Store(true)
		begun := time.Now()
		if _, err := Open(testConfig(errorfs.Wrap(vfs.NewCrashableMem(), s))); err == nil || time.Since(begun) > time.Minute {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}
