package extent

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/reclaim"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/replication/segment"
)

// reclaimRig is a rig that counts how often its group was asked for a checkpoint.
func reclaimRig(t *testing.T, change func(*Config)) (*rig, *atomic.Int64) {
	t.Helper()
	asked := new(atomic.Int64)
	cfg := testConfig(vfs.NewCrashableMem())
	cfg.OnCheckpointDue = func(segment.GroupKey) { asked.Add(1) }
	change(&cfg)
	r := &rig{t: t, s: openStore(t, cfg), term: 1}
	g, err := r.s.CreateGroup(testKey)
	if err != nil {
		t.Fatal(err)
	}
	r.g = g
	r.ok(openSession(1))
	return r, asked
}

// Guards I6: Worker.look (reclaim), and `wanted` in CheckpointDue. Either was removed once; both tests failed.
func TestChangesAreCheckpointedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, asked := reclaimRig(t, func(*Config) {})
		defer r.s.Close()
		r.ok(r.write(0, 0, blocks(1, 1)))
		time.Sleep(reclaim.MaxCheckpointAge - 2*reclaim.Every)
		synctest.Wait()
		if asked.Load() > 0 {
			t.Errorf("asked for %d checkpoints of a single block at once", asked.Load())
		}
		time.Sleep(4 * reclaim.Every)
		synctest.Wait()
		if asked.Load() == 0 || !r.g.CheckpointDue() {
			t.Fatalf("asked for %d checkpoints after %v, due %v", asked.Load(), reclaim.MaxCheckpointAge, r.g.CheckpointDue())
		}
		r.checkpoint()
		asked.Store(0)
		time.Sleep(3 * reclaim.MaxCheckpointAge)
		synctest.Wait()
		if asked.Load() > 0 || r.g.CheckpointDue() {
			t.Errorf("asked for %d checkpoints, though nothing has changed; due %v", asked.Load(), r.g.CheckpointDue())
		}
	})
}

func TestDiscardFreesFullStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, asked := reclaimRig(t, func(c *Config) { c.CapacityBytes, c.ReserveBytes = 16<<20, 4<<20 })
		defer r.s.Close()
		for x := storage.ExtentIndex(0); !r.s.Space().Full(); x++ {
			r.ok(r.write(x, 0, blocks(1, 48)))
			time.Sleep(2 * room.TTL)
		}
		for x := range storage.ExtentIndex(100) {
			r.ok(r.clear(x, 0, storage.ExtentSize))
		}
		for range 10 {
			time.Sleep(reclaim.Every)
			synctest.Wait()
			if asked.Load() > 0 && r.g.CheckpointDue() {
				r.checkpoint()
				r.g.Log().Compact(r.index - 1) // as Raft does, but for its trailing entries
			}
		}
		time.Sleep(2 * reclaim.Every)
		synctest.Wait()
		if space := r.s.Space(); space.FreeBytes < space.CapacityBytes*3/4 {
			t.Errorf("%d of %d bytes are free, though everything was discarded", space.FreeBytes, space.CapacityBytes)
		}
	})
}

// A follower that is cut off holds the log with an entry that nobody commits. Its group is asked for a checkpoint as the
// log goes on, and not again and again while it stands still: each checkpoint would ask for the next (askedAt, tried).
func TestHeldLogAsksOncePerSegment(t *testing.T) {
	cfg := testConfig(memFS(t))
	cfg.CheckpointBytes, cfg.SegmentBytes = 512*kib, 256*kib
	held := segment.GroupKey{Group: 2, Incarnation: 1}
	asked := 0
	cfg.OnCheckpointDue = func(k segment.GroupKey) {
		if k == held {
			asked++
		}
	}
	r := newRig(t, cfg)
	g, err := r.s.CreateGroup(held)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Log().Append([]segment.Entry{{Index: 1, Term: 1, Data: openSession(1).data()}}); err != nil {
		t.Fatal(err)
	}
	r.ok(openSession(1))
	for from := r.s.Log().End().Segment(); r.s.Log().End().Segment() < from+reclaim.IdleSegments+2*segment.SegmentNo(cfg.CheckpointBytes/cfg.SegmentBytes)+2; {
		r.ok(r.write(0, 0, blocks(1, 16)))
	}
	r.checkpoint()
	if asked == 0 {
		t.Fatal("the group that holds the log was not asked for a checkpoint")
	}
	for range 5 {
		r.checkpoint()
	}
	if asked > 1 {
		t.Errorf("asked %d times although the log stood still", asked)
	}
}
