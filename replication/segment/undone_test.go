package segment

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// slowSync holds back each sync of data until it is let go.
type slowSync struct {
	mu   sync.Mutex
	held chan struct{} // nil: syncs pass
}

func (s *slowSync) MaybeError(op errorfs.Op) error {
	s.mu.Lock()
	held := s.held
	s.mu.Unlock()
	if held != nil && op.Kind == errorfs.OpFileSyncData {
		<-held
	}
	return nil
}

func (s *slowSync) String() string { return "slow sync" }

func (s *slowSync) hold(on bool) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = nil
	if on {
		s.held = make(chan struct{})
	}
	return s.held
}

// TestTruncationInFlight: a suffix is truncated while its end is not durable yet, a checkpoint is written at that moment, and
// the power goes when any number of the batches after it are durable. Nothing that was acknowledged is lost, and the replica is
// sound (tried: without undone in NextNeeded, the log that begins with the end of the old suffix has a gap, and the replica
// is given up for good).
func TestTruncationInFlight(t *testing.T) {
	for batches := range 4 {
		synctest.Test(t, func(t *testing.T) {
			mem := vfs.NewCrashableMem()
			root, err := mem.OpenDir("")
			if err == nil {
				err = root.Sync()
			}
			if err != nil {
				t.Fatal(err)
			}
			var disk slowSync
			l := openLog(t, testConfig(errorfs.Wrap(mem, &disk)))
			g, err := l.CreateGroup(key(1), 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i := uint64(1); i <= 10; i++ {
				mustAppend(t, g, testEntry(i, 4, 200))
			}
			mustWait(t, l, l.End())
			time.Sleep(time.Second) // the closing record
			pass := disk.hold(true)
			mustAppend(t, g, testEntry(11, 4, 200))
			synctest.Wait()                       // it is written, and being synced
			for _, term := range []uint64{5, 6} { // two leaders, one after the other
				if err := g.TruncateSuffix(10); err != nil {
					t.Fatal(err)
				}
				mustAppend(t, g, testEntry(10, term, 200))
			}
			need := g.NextNeeded(9) // a checkpoint of entry 9 is made durable now
			for range batches {
				select {
				case pass <- struct{}{}:
				default: // all is durable
				}
				synctest.Wait()
			}
			left := mem.CrashClone(vfs.CrashCloneCfg{})
			disk.hold(false)
			close(pass)
			l2 := openLog(t, testConfig(left, GroupStart{Key: key(1), AppliedIndex: 9, AppliedTerm: 4, From: need}))
			if d := l2.Damaged(); len(d) > 0 {
				t.Errorf("after %d batches: damaged: %+v", batches, d)
			}
			g2 := l2.Group(key(1))
			if e, err := g2.Get(10); err == nil && !slices.Contains([]uint64{4, 6}, e.Term) {
				t.Errorf("after %d batches entry 10 is of term %d", batches, e.Term)
			}
			if batches > 1 {
				if e, err := g2.Get(10); err != nil || e.Term != 6 {
					t.Errorf("all was durable, and entry 10 is of term %d: %v", e.Term, err)
				}
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if err := l2.Close(); err != nil {
				t.Error(err)
			}
			if n := g.NextNeeded(9); len(g.undone) != 0 || n < need {
				t.Errorf("%d truncations are kept though they are durable", len(g.undone))
			}
		})
	}
}
