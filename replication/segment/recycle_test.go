package segment

import (
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// unused is what tables say that refer to nothing.
func unused() bool { return false }

// TestIdleGroupHoldsNoSegment: entries of an idle group that Raft never compacts (it keeps trailing ones) do not keep
// the log from being recycled once a checkpoint covers them; entries that a manifest holds do. It guards the limit in
// needsLocked.
func TestIdleGroupHoldsNoSegment(t *testing.T) {
	l := openLog(t, testConfig(vfs.NewMem()))
	idle, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	busy, err := l.CreateGroup(key(2), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 5; i++ {
		mustWait(t, l, mustAppend(t, idle, testEntry(i, 1, 100)))
	}
	l.DurableCheckpoint(key(1), 5, 1, idle.NextNeeded(5))
	idle.Compact(4)
	release := idle.HoldFrom(4)
	index := uint64(0)
	turn := func() (recycled, sealed int) {
		for until := l.End().Segment() + 4; l.End().Segment() < until; {
			index++
			mustWait(t, l, mustAppend(t, busy, testEntry(index, 1, 8000)))
		}
		l.DurableCheckpoint(key(1), 5, 1, idle.NextNeeded(5))
		l.DurableCheckpoint(key(2), index, 1, busy.NextNeeded(index))
		busy.Compact(index)
		for _, s := range l.Segments() {
			if s.State == SegmentSealed {
				sealed++
				if l.Recycle(s.No, unused) == nil {
					recycled++
				}
			}
		}
		return recycled, sealed
	}
	if recycled, _ := turn(); recycled > 0 || idle.FirstIndex() > 4 {
		t.Fatalf("%d segments were recycled and the log begins at %d, though entry 4 is held", recycled, idle.FirstIndex())
	}
	release()
	for n := range 3 {
		if recycled, sealed := turn(); sealed-recycled > 1 {
			t.Fatalf("turn %d: only %d of %d segments were recycled", n, recycled, sealed)
		}
	}
	if idle.retained != 0 || idle.LastIndex() != 0 {
		t.Fatalf("%d bytes are retained, the last entry is %d", idle.retained, idle.LastIndex())
	}
	mustWait(t, l, mustAppend(t, idle, testEntry(6, 1, 100)))
	checkEntry(t, idle, testEntry(6, 1, 100))
}

// TestHoldHasABound: the log is held for those who ask for it as far back as HoldBytes, and less when room is short. What lies further back is
// recycled, and what does not is there.
//
// Guards I6 and I9, in unheldLocked: with the look at the segment taken out, entry 4 was held for ever.
func TestHoldHasABound(t *testing.T) {
	cfg := testConfig(vfs.NewMem())
	const segments = 6
	cfg.HoldBytes = segments * cfg.SegmentBytes
	for _, by := range []string{"SetHold", "HoldFrom"} {
		l := openLog(t, cfg)
		idle, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		busy, err := l.CreateGroup(key(2), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		index := uint64(0)
		turn := func(n SegmentNo) {
			for until := l.End().Segment() + n; l.End().Segment() < until; {
				index++
				mustWait(t, l, mustAppend(t, busy, testEntry(index, 1, 8000)))
			}
			l.DurableCheckpoint(key(1), idle.lastLocked(), 1, idle.NextNeeded(idle.lastLocked()))
			l.DurableCheckpoint(key(2), index, 1, busy.NextNeeded(index))
			busy.Compact(index)
			idle.Compact(idle.lastLocked())
			for _, s := range l.Segments() {
				if s.State == SegmentSealed {
					_ = l.Recycle(s.No, unused)
				}
			}
		}
		for i := uint64(1); i <= 5; i++ {
			mustWait(t, l, mustAppend(t, idle, testEntry(i, 1, 100)))
		}
		at := idle.entryLocked(4).at.Segment()
		if by == "SetHold" {
			idle.SetHold(4)
		} else {
			defer idle.HoldFrom(4)()
		}
		turn(segments - 2)
		if first := idle.FirstIndex(); first == 0 || first > 4 {
			t.Errorf("%s: the log begins at %d, and entry 4 lies within the bound", by, first)
		}
		turn(4)
		if first := idle.FirstIndex(); first != 0 || slices.ContainsFunc(l.Segments(), func(s SegmentInfo) bool { return s.No == at && s.State == SegmentSealed }) {
			t.Errorf("%s: the log begins at %d, and entry 4 lies beyond the bound", by, first)
		}
		mustWait(t, l, mustAppend(t, idle, testEntry(6, 1, 100)))
		if by == "SetHold" {
			idle.SetHold(6)
		} else {
			defer idle.HoldFrom(6)()
		}
		l.HoldWithin(2 * cfg.SegmentBytes)
		turn(4)
		if first := idle.FirstIndex(); first != 0 {
			t.Errorf("%s: with less room the log begins at %d", by, first)
		}
		_ = l.Close()
	}
}

// TestRecycledFileHasOneOwner: the file of a recycled segment is closed by the preparer and by nobody else; closed twice,
// it would fail the disk. It guards the removal from openLRU in Recycle.
func TestRecycledFileHasOneOwner(t *testing.T) {
	l := openLog(t, testConfig(vfs.NewMem()))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	for l.End().Segment() < 5 {
		index++
		mustWait(t, l, mustAppend(t, g, testEntry(index, 1, 8000)))
	}
	l.DurableCheckpoint(key(1), index, 1, g.NextNeeded(index))
	g.Compact(index)
	l.mu.Lock()
	s := l.segments[1]
	known := slices.Contains(l.openLRU, s)
	l.mu.Unlock()
	if err := l.Recycle(1, unused); err != nil || !known {
		t.Fatalf("recycle: %v; the file was open: %v", err, known)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.openLRU, s) {
		t.Fatal("the file of a recycled segment may still be closed to make room for others")
	}
}

// TestDamageOutlivesTheLog: while a damaged replica waits for its replacement the log goes on, and positions are moved
// forward for groups that have nothing new. The damaged one's must stay, or the next start finds nothing wrong (I7).
// It guards the damage in NextNeeded.
func TestDamageOutlivesTheLog(t *testing.T) {
	fs := vfs.NewMem()
	at := fill(t, fs)
	flip(t, fs, at[key(1)][1]+100) // entry 1: nothing is left of the group's log
	groups := threeGroups()
	l := openLog(t, testConfig(fs, groups...))
	expectDamaged(t, l, 1)
	g := l.Group(key(2))
	for i, until := g.LastIndex()+1, l.End().Segment()+4; l.End().Segment() < until; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 8000)))
	}
	groups[0].From = l.Group(key(1)).NextNeeded(0)
	_ = l.Close()
	expectDamaged(t, openLog(t, testConfig(fs, groups...)), 1)
}

// noFallocate is a file system that cannot reserve space.
type noFallocate struct {
	vfs.FS
	written atomic.Int64
}

func (fs *noFallocate) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	return &noFallocateFile{f, fs}, err
}

type noFallocateFile struct {
	vfs.File
	fs *noFallocate
}

func (f *noFallocateFile) Preallocate(int64, int64) error { return syscall.EOPNOTSUPP }

func (f *noFallocateFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.written.Add(int64(len(p)))
	return f.File.WriteAt(p, off)
}

// TestSegmentsAreNeverSparse: where space cannot be reserved a segment is written before it counts as free: ENOSPC
// within it would fail the disk. It guards the fall-through in fill.
func TestSegmentsAreNeverSparse(t *testing.T) {
	fs := &noFallocate{FS: vfs.NewMem()}
	cfg := testConfig(fs)
	cfg.FreeSegments, cfg.PrewriteBelowBytes = 1, -1
	l := openLog(t, cfg)
	awaitFree(t, l, 1)
	if n := fs.written.Load(); n < 2*cfg.SegmentBytes {
		t.Fatalf("%d bytes were written for two segments of %d", n, cfg.SegmentBytes)
	}
}

// TestInUseIsAskedLast: references are asked for only when the log needs the segment no more, and under its lock, so that
// no entry of it can be checkpointed between the two. Asked before, a table could refer to a recycled segment: an
// acknowledged write would be lost. It guards the order in Recycle (tried).
func TestInUseIsAskedLast(t *testing.T) {
	l := openLog(t, testConfig(vfs.NewMem()))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	for l.End().Segment() < 3 {
		index++
		mustWait(t, l, mustAppend(t, g, testEntry(index, 1, 8000)))
	}
	asked, used := 0, true
	inUse := func() bool {
		asked++
		if l.mu.TryLock() {
			l.mu.Unlock()
			t.Error("a checkpoint may become known meanwhile")
		}
		return used
	}
	if err := l.Recycle(1, inUse); err == nil || asked > 0 {
		t.Fatalf("no checkpoint: %v, asked %d times", err, asked)
	}
	l.DurableCheckpoint(key(1), index, 1, g.NextNeeded(index))
	unpin := l.Pin(1)
	if err := l.Recycle(1, inUse); err == nil || asked > 0 {
		t.Fatalf("pinned: %v, asked %d times", err, asked)
	}
	unpin()
	if err := l.Recycle(1, inUse); err == nil || asked != 1 {
		t.Fatalf("in use: %v, asked %d times", err, asked)
	}
	used = false
	if err := l.Recycle(1, inUse); err != nil || asked != 2 {
		t.Fatalf("not in use: %v, asked %d times", err, asked)
	}
}
