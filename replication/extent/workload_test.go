package extent

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/reclaim"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// Guards I6: a volume is filled, written over, discarded, filled again and deleted, beside a group in which nothing
// happens but its first entry. Whatever is not live any more is free afterwards, but for what one round of checkpoints
// leaves, and the log never holds more than data and that.
func TestSpaceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			seed       = 7
			extents    = 6 // of 4 MiB, whole
			checkpoint = 2 << 20
			slack      = checkpoint/(256*kib) + 8 // segments: one round of checkpoints, the open one, the ready ones
		)
		rng := rand.New(rand.NewPCG(seed, 0))
		cfg := testConfig(vfs.NewCrashableMem())
		cfg.CheckpointBytes = checkpoint
		cfg.Segment.CacheBytes = 1 << 20
		due := make(chan segment.GroupKey, 100)
		cfg.OnCheckpointDue = func(k segment.GroupKey) {
			select {
			case due <- k:
			default: // lost: the store asks again
			}
		}
		r := &rig{t: t, s: openStore(t, cfg), term: 1}
		defer r.s.Close()
		r.g, _ = r.s.CreateGroup(testKey)
		idle := &rig{t: t, s: r.s, term: 1}
		idle.g, _ = r.s.CreateGroup(segment.GroupKey{Group: 2, Incarnation: 1})
		idle.ok(openSession(1))
		r.ok(openSession(1))

		// serve does what Raft does with the requests for checkpoints: it keeps one trailing entry.
		serve := func() {
			for len(due) > 0 {
				k := <-due
				for _, x := range []*rig{r, idle} {
					if x.g.Key() == k && x.g.CheckpointDue() {
						x.checkpoint()
						x.g.Log().Compact(x.index - 1)
					}
				}
			}
		}
		settle := func() {
			for range 3 {
				time.Sleep(reclaim.MaxCheckpointAge + 2*reclaim.Every)
				synctest.Wait()
				serve()
			}
			synctest.Wait()
		}
		used := func() int64 {
			n, _ := r.s.Log().Space()
			return n / cfg.SegmentBytes
		}
		want := func(what string, live int64) {
			t.Helper()
			if n := used(); n > live+slack {
				t.Errorf("%s: %d segments are in use, %d hold live data", what, n, live)
			}
		}
		const live = extents*storage.ExtentSize/(15*16*kib) + 1 // fifteen records of four blocks fit into a segment
		write := func(x, first, n int) {
			r.ok(r.write(storage.ExtentIndex(x), uint32(first*storage.BlockSize), blocks(rng.Uint64(), n)))
			serve()
		}
		sequential := func() {
			for x := range extents {
				for b := 0; b < storage.BlocksPerExtent; b += 4 {
					write(x, b, 4)
				}
			}
		}
		sequential()
		want("filled", live)
		sequential()
		settle()
		want("written over in order", live)
		for range 2000 {
			write(rng.IntN(extents), rng.IntN(storage.BlocksPerExtent), 1)
		}
		settle() // half-dead segments wait for compaction: nothing is promised but what follows
		for x := range extents {
			r.ok(r.clear(storage.ExtentIndex(x), 0, storage.ExtentSize))
		}
		settle()
		want("discarded", 0)
		sequential()
		r.ok(request{o: op.Op{Kind: op.DeleteVolume, Volume: 1}})
		serve()
		settle()
		want("deleted", 0)
		if n := r.s.unsaved.Total(); n != 0 {
			t.Errorf("%d pages wait for a checkpoint", n)
		}
	})
}
