package segment

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/crc32c"
)

// TestCompact: entries are dropped only below a checkpoint, not while they are held, and kept within RetainBytes.
func TestCompact(t *testing.T) {
	cfg := testConfig(vfs.NewMem())
	cfg.RetainBytes = 5 * 1088
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 50; i++ {
		mustAppend(t, g, testEntry(i, 1, 1000)) // 1,088 bytes in the log
	}
	mustWait(t, l, l.End())
	first := func(want uint64) {
		t.Helper()
		if got := g.FirstIndex(); got != want {
			t.Fatalf("the first entry is %d, want %d", got, want)
		}
	}
	g.Compact(50)
	first(1) // no checkpoint
	l.DurableCheckpoint(key(1), 20, 1, g.NextNeeded(20))
	g.Compact(50)
	first(16) // 20 is the last that may go, five are kept
	release := g.HoldFrom(18)
	l.DurableCheckpoint(key(1), 40, 1, g.NextNeeded(40))
	g.Compact(40)
	first(18)
	release() // without another Compact: an idle group has none
	first(36)
	if err := g.TruncateSuffix(39); err != nil {
		t.Fatal(err)
	}
	if end, ok := g.EndOf(39, 1); !ok || end != 0 {
		t.Fatalf("EndOf below the checkpoint: %s, %v", end, ok)
	}
	if _, err := g.Append([]Entry{testEntry(41, 2, 10)}); err != nil {
		t.Fatal(err) // the checkpoint holds 39 and 40
	}
	if _, err := g.Get(40); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("Get of a truncated entry: %v", err)
	}
}

// TestAppendRefuses: gaps, entries that are too large, nothing at all; and nothing is appended then.
func TestAppendRefuses(t *testing.T) {
	l := openLog(t, testConfig(vfs.NewMem()))
	g, err := l.CreateGroup(key(1), 7, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, entries := range [][]Entry{nil, {testEntry(7, 1, 1)}, {testEntry(9, 1, 1)}, {testEntry(8, 1, 1), testEntry(10, 1, 1)},
		{testEntry(8, 1, 64<<10)}} {
		if _, err := g.Append(entries); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%d entries: %v", len(entries), err)
		}
	}
	mustAppend(t, g, testEntry(8, 1, 1))
	if _, err := l.CreateGroup(key(1), 0, 0); !errors.Is(err, storage.ErrExists) {
		t.Errorf("CreateGroup: %v", err)
	}
	l.DropGroup(key(1))
	if _, err := g.Append([]Entry{testEntry(9, 1, 1)}); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("dropped group: %v", err)
	}
	_ = l.Close()
	if _, _, err := l.AppendData(DataHeader{}, make([]byte, storage.BlockSize)); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("closed log: %v", err)
	}
	if err := l.Wait(context.Background(), l.End()+1); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Wait on a closed log: %v", err)
	}
}

// stalledFS holds back syncs of segments while hold is locked.
func stalledFS(gate chan struct{}) vfs.FS {
	return errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			<-gate
		}
		return nil
	}))
}

// TestTimeOfDay: how old an append is does not depend on the time of day, which may be set. A bubble has no other clock,
// hence none here.
func TestTimeOfDay(t *testing.T) {
	gate := make(chan struct{})
	l := openLog(t, testConfig(stalledFS(gate)))
	defer close(gate)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, g, testEntry(1, 1, 1000))
	since, ok := l.OldestPending()
	if age := time.Since(since); !ok || age < 0 || age > time.Minute {
		t.Fatalf("pending for %v (%v)", age, ok)
	}
	if since == since.Round(0) { // which takes the reading of the monotonic clock away
		t.Error("how old it is depends on the time of day")
	}
}

// TestStalledDisk: while a sync hangs, Append goes on until MaxTailBytes wait, what is not durable can be read,
// OldestPending tells since when, nobody is told that anything is durable; afterwards callbacks come in order. It
// guards admitLocked and the order of notes.
func TestStalledDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		cfg := testConfig(stalledFS(gate))
		cfg.MaxTailBytes = 20 * 1088
		l := openLog(t, cfg)
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		appended := 0
		var called []Position
		done := make(chan struct{})
		go func() {
			defer close(done)
			var ends []Position
			for i := uint64(1); i <= 30; i++ {
				ends = append(ends, mustAppend(t, g, testEntry(i, 1, 1000)))
				appended = int(i)
				if i == 20 {
					for _, j := range []int{5, 3, 3, 19, 0} {
						end := ends[j]
						l.Notify(end, func(error) { called = append(called, end) })
					}
				}
			}
		}()
		synctest.Wait()
		if appended != 20 {
			t.Fatalf("%d entries were taken, want 20", appended)
		}
		checkEntry(t, g, testEntry(20, 1, 1000))
		_, at, n, end, _ := g.Location(20)
		buf := make([]byte, n)
		if err := l.ReadAt(at, buf); err != nil || l.Durable() >= end || len(called) > 0 {
			t.Fatalf("ReadAt: %v; durable %s; called %v", err, l.Durable(), called)
		}
		if since, ok := l.OldestPending(); !ok || !since.Equal(time.Now()) {
			t.Fatalf("pending since %v (%v)", since, ok)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx, end); !errors.Is(err, storage.ErrCanceled) {
			t.Fatalf("Wait: %v", err)
		}
		close(gate)
		<-done
		mustWait(t, l, l.End())
		if len(called) != 5 || !slices.IsSorted(called) {
			t.Fatalf("callbacks came for %v", called)
		}
		_ = l.Close()
	})
}

// TestRestartGoesOn: a log that was closed goes on where it ended, so that restarts do not use up segments.
func TestRestartGoesOn(t *testing.T) {
	fs := vfs.NewMem()
	fill(t, fs)
	l := openLog(t, testConfig(fs, threeGroups()...))
	end := l.End()
	_ = l.Close()
	for range 5 {
		l = openLog(t, testConfig(fs, threeGroups()...))
		if l.End() != end {
			t.Fatalf("the log went from %s to %s", end, l.End())
		}
		_ = l.Close()
	}
}

// TestRecycledSegment: the records of a recycled segment's earlier life are not seen again, though they are whole, lie
// at the right offsets, and belong to the same groups. It guards the comparison of the position in
// decodeRecordHeader.
func TestRecycledSegment(t *testing.T) {
	fs := vfs.NewMem()
	cfg := testConfig(fs)
	cfg.FreeSegments = 1
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	for turn := range 6 {
		for until := l.End().Segment() + 1; l.End().Segment() < until; {
			index++
			mustAppend(t, g, testEntry(index, uint64(turn+1), 3000)) // every segment has the same layout
		}
		mustWait(t, l, l.End())
		start := GroupStart{Key: key(1), AppliedIndex: index - 1, AppliedTerm: uint64(turn + 1), From: g.NextNeeded(index - 1)}
		l.DurableCheckpoint(key(1), start.AppliedIndex, start.AppliedTerm, start.From)
		g.Compact(index - 1)
		if turn > 0 {
			recycleOne(t, l)
			awaitFree(t, l, 1)
		}
		_ = l.Close()
		cfg.Groups = []GroupStart{start}
		l = openLog(t, cfg)
		g = l.Group(key(1))
		if len(l.Damaged()) > 0 || g.LastIndex() != index || g.FirstIndex() != index {
			t.Fatalf("turn %d: the log has %d to %d, want %d: %v", turn, g.FirstIndex(), g.LastIndex(), index, l.Damaged())
		}
	}
}

// recycleOne recycles the sealed segment with the highest number.
func recycleOne(t *testing.T, l *Log) {
	t.Helper()
	var no SegmentNo
	for _, s := range l.Segments() {
		if s.State == SegmentSealed {
			no = max(no, s.No)
		}
	}
	if err := l.Recycle(no, unused); err != nil {
		t.Fatal(err)
	}
}

// TestRecycleRefuses: a segment that is needed, pinned or not there is not recycled.
func TestRecycleRefuses(t *testing.T) {
	cfg := testConfig(vfs.NewMem())
	cfg.CacheBytes = 1
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); l.End().Segment() < 3; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 8000)))
	}
	last := g.LastIndex()
	refused := func(no SegmentNo, kind error) {
		t.Helper()
		if err := l.Recycle(no, unused); !errors.Is(err, kind) {
			t.Fatalf("recycle %s: %v", no, err)
		}
	}
	refused(1, storage.ErrConflict) // no checkpoint
	l.DurableCheckpoint(key(1), last, 1, g.NextNeeded(last))
	refused(2, storage.ErrConflict) // not compacted, and the last one before the end
	g.Compact(last)
	unpin := l.Pin(1)
	refused(1, storage.ErrConflict) // pinned
	unpin()
	unpin()
	release := g.HoldFrom(1)
	refused(1, storage.ErrConflict) // held
	release()
	refused(l.End().Segment(), storage.ErrConflict) // open
	refused(99, storage.ErrNotFound)
	if err := l.Recycle(1, unused); err != nil {
		t.Fatal(err)
	}
	refused(1, storage.ErrNotFound)
	if err := l.ReadAt(PositionOf(1, 8192), make([]byte, 10)); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("ReadAt in a recycled segment: %v", err)
	}
}

// TestStaleTerm: a manifest was installed, and the reset of the log was lost in a power cut. What the log still has
// behind the manifest's index, of a lower term, is of a history that the manifest replaced: were it kept, the replica
// would claim a lower last term than the manifest's and vote for a candidate that lacks committed entries. It guards the
// comparison of terms in applyEntry.
func TestStaleTerm(t *testing.T) {
	fs := vfs.NewMem()
	fill(t, fs) // entries 1 to 10 of term 1
	groups := threeGroups()
	groups[0] = GroupStart{Key: key(1), AppliedIndex: 5, AppliedTerm: 2}
	l := openLog(t, testConfig(fs, groups...))
	g := l.Group(key(1))
	if g.LastIndex() != 0 || len(l.Damaged()) > 0 {
		t.Fatalf("the log ends at %d, damaged %v", g.LastIndex(), l.Damaged())
	}
	mustAppend(t, g, testEntry(6, 2, 10))
	_ = l.Close()
	l = openLog(t, testConfig(fs, groups...))
	if g = l.Group(key(1)); g.LastIndex() != 6 || len(l.Damaged()) > 0 {
		t.Fatalf("after a restart the log ends at %d, damaged %v", g.LastIndex(), l.Damaged())
	}
	checkEntry(t, g, testEntry(6, 2, 10))
}

// TestOpenFilesAreBounded: no more files of sealed segments than MaxOpenFiles stay open, and all can be read.
func TestOpenFilesAreBounded(t *testing.T) {
	cfg := testConfig(vfs.NewMem())
	cfg.CacheBytes, cfg.MaxOpenFiles = 1, 3
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 80; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 7000)))
	}
	for i := uint64(1); i <= 80; i++ {
		checkEntry(t, g, testEntry(i, 1, 7000))
	}
	open, sealed := 0, 0
	for _, s := range l.segments {
		if s.state == SegmentSealed {
			sealed++
			if s.file != nil {
				open++
			}
		}
	}
	if open > 3 || sealed < 8 {
		t.Fatalf("%d of %d sealed segments have an open file", open, sealed)
	}
}

// TestBlockSums: a record whose checksum is made from the sums of its blocks is the record that a pass over the blocks
// makes; with a sum that is not its block's, the damage shows when the record is read.
func TestBlockSums(t *testing.T) {
	fs := vfs.NewMem()
	l := openLog(t, testConfig(fs))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	sums := func(e Entry, head int) (out []byte) {
		for b := e.Data[head:]; len(b) > 0; b = b[storage.BlockSize:] {
			out = binary.LittleEndian.AppendUint32(out, crc32c.Sum(b[:storage.BlockSize]))
		}
		return out
	}
	for i := uint64(1); i <= 4; i++ {
		head := int(i) * 37
		plain := testEntry(i, 1, head+int(i)*storage.BlockSize)
		given := plain
		given.BlockSums = sums(plain, head)
		want, _, err := g.prepare([]Entry{plain})
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := g.prepare([]Entry{given})
		if err != nil {
			t.Fatal(err)
		}
		if got[0].header.sum != want[0].header.sum {
			t.Errorf("%d blocks after %d bytes: sum %08x, want %08x", i, head, got[0].header.sum, want[0].header.sum)
		}
		mustAppend(t, g, given)
	}
	wrong := testEntry(5, 1, 2*storage.BlockSize)
	wrong.BlockSums = sums(wrong, 0)
	wrong.BlockSums[5]++
	mustWait(t, l, mustAppend(t, g, wrong))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, testConfig(fs, GroupStart{Key: key(1), From: PositionOf(1, segmentHeaderBytes)}))
	if got := l.Damaged(); len(got) != 1 {
		t.Errorf("damaged: %v", got)
	}
	for i := uint64(1); i <= 4; i++ {
		if e, err := l.Group(key(1)).Get(i); err != nil || !bytes.Equal(e.Data, testEntry(i, 1, int(i)*(37+storage.BlockSize)).Data) {
			t.Errorf("entry %d: %v", i, err)
		}
	}
	for _, bad := range [][]byte{{1}, make([]byte, 12)} {
		e := testEntry(6, 1, 2*storage.BlockSize)
		e.BlockSums = bad
		if _, err := g.Append([]Entry{e}); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%d bytes of block sums: %v", len(bad), err)
		}
	}
}
