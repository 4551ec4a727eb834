package extent

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
)

// A manifest of which others have overwritten most keeps its segments while there is room. When the store is full it is closed, after a while:
// the segments are used again, and the pull goes on with another manifest where it was. One whose segments are needed anyway stays open.
//
// Guards I6, in closeManifestForRoom: the call, the time, and the garbage. Without one of them a case failed.
func TestManifestGivesWayToClients(t *testing.T) {
	for _, c := range []struct {
		name        string
		overwritten bool
		full        bool
		after       time.Duration
		closed      bool
	}{
		{"room", true, false, time.Hour, false},
		{"full", true, true, manifestLasts + 10*time.Second, true},
		{"full, and young", true, true, manifestLasts - 10*time.Second, false},
		{"full of what lives", false, true, time.Hour, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := &sharedFS{FS: memFS(t), total: 1 << 30}
				cfg := testConfig(fs)
				cfg.SegmentBytes = 256 * kib
				cfg.Segment.RetainBytes, cfg.Segment.HoldBytes, cfg.Segment.CacheBytes = -1, -1, 1
				r := newRig(t, cfg)
				defer func() { _ = r.s.Close() }()
				r.ok(openSession(1))
				m := newModel()
				m.apply(openSession(1), 1)
				write := func(seed uint64) {
					for i := range uint64(32) {
						q := r.write(storage.ExtentIndex(i), 0, blocks(seed+i, 12))
						r.ok(q)
						m.apply(q, 1)
					}
					r.checkpoint()
					r.g.Log().Compact(r.index)
				}
				write(100)
				dst, _ := newTarget(t, memFS(t), 1)
				defer func() { _ = dst.s.Close() }()
				man, st := stage(t, r.g, dst.s)
				defer man.Close()
				if _, err := pullUntil(man, st, func(moved int) bool { return moved >= 100 }); !errors.Is(err, errBroken) {
					t.Fatal(err)
				}
				if c.overwritten {
					write(1000)
				}
				if c.full {
					full(r)
				}
				for left := c.after; left > 0; left -= 10 * time.Second {
					time.Sleep(min(left, 10*time.Second))
					if _, err := man.Extents(table.Ref{}, 1); err != nil { // it is not silent
						break
					}
				}
				synctest.Wait()
				_, err := pullUntil(man, st, func(int) bool { return true })
				if closed := errors.Is(err, storage.ErrNotFound); closed != c.closed {
					t.Errorf("closed: %v, %v", closed, err)
				}
				if !c.closed {
					return
				}
				st.Keep()
				finishPull(t, r.g, dst.g)
				if err := errors.Join(checkLive(dst.g), m.compare(dst.g, 32, 12)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A source reads the blocks of an extent that was written at random in the order in which they lie, many at once. One that the disk does
// not give back costs one read more, and comes from elsewhere.
//
// Line: readSpans. Without it each block was a read.
func TestManifestReadsManyBlocksAtOnce(t *testing.T) {
	reads := &readCounter{}
	fs := memFS(t)
	cfg := testConfig(errorfs.Wrap(fs, reads))
	cfg.SegmentBytes = 512 * kib
	cfg.Segment.CacheBytes = 1
	r := newRig(t, cfg)
	r.ok(openSession(1))
	const n = 256
	var want [n][]byte
	for _, b := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
		want[b] = blocks(uint64(b), 1)
		r.ok(r.write(0, uint32(b)*storage.BlockSize, want[b]))
	}
	r.checkpoint()
	man, err := r.g.OpenManifest()
	if err != nil {
		t.Fatal(err)
	}
	defer man.Close()
	refs, err := man.Extents(table.Ref{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	rotten := 17
	r.rot(r.at(rotten, 1))
	before := reads.n.Load()
	asked := 0
	got, err := man.Blocks(refs[0], 0, n, func(u Unreadable, dst []byte) error {
		asked++
		copy(dst, want[u.Block])
		return nil
	})
	if err != nil || !bytes.Equal(got, bytes.Join(want[:], nil)) || asked != 1 {
		t.Errorf("%d bytes, %d blocks from elsewhere: %v", len(got), asked, err)
	}
	if took := reads.n.Load() - before; took > 12 {
		t.Errorf("%d reads for %d blocks", took, n)
	}
}

// readCounter counts reads of segments.
type readCounter struct{ n atomic.Int64 }

func (c *readCounter) String() string { return "read counter" }

func (c *readCounter) MaybeError(o errorfs.Op) error {
	if isRead(o) && strings.Contains(o.Path, "/log/") {
		c.n.Add(1)
	}
	return nil
}
