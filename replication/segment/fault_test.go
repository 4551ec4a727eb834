package segment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	storage "github.com/storaged/storaged"
)

// faultyWorld is a world whose file system fails call number n, once, if it is of the wanted kind.
func faultyWorld(n int64, wanted func(errorfs.Op) bool, err error) (w *world, calls, failures *atomic.Int64) {
	w = newWorld(3)
	calls, failures = new(atomic.Int64), new(atomic.Int64)
	w.cfg.FS = errorfs.Wrap(w.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if wanted(op) && calls.Add(1) == n {
			return err
		}
		return nil
	}))
	w.cfg.OnFailure = func(error) { failures.Add(1) }
	return w, calls, failures
}

// TestEveryCallFailsOnce lets each call that changes the disk fail once. Either the log does not open, and says why,
// or it fails for good: every wait and append after that says KindIO, OnFailure came once, and after a power cut
// everything that was reported durable is there. It guards that nothing is retried: the committer's way out in run.
func TestEveryCallFailsOnce(t *testing.T) {
	writes := func(op errorfs.Op) bool {
		return op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose && op.Kind != errorfs.OpRemove
	}
	for n := int64(1); ; n++ {
		w, calls, failures := faultyWorld(n, writes, syscall.EIO)
		l, err := Open(w.config(w.cfg.FS))
		if err != nil {
			if storage.KindOf(err) != storage.KindIO {
				t.Fatalf("call %d: open: %v", n, err)
			}
			continue
		}
		w.l = l
		rng := rand.New(rand.NewPCG(7, 7))
		for i := 0; i < 40 && l.Failed() == nil; i++ {
			w.tryAppend(key(1+rng.IntN(3)), rng.IntN(6000))
		}
		// Nothing waits for the last segments that are made ready; let them be made, too.
		_ = l.Wait(context.Background(), l.End())
		if calls.Load() < n {
			_ = l.Close()
			if calls.Load() < n {
				return
			}
		} else {
			expectFailed(t, l, n)
		}
		if l.Failed() != nil {
			_ = l.Close() // only then nobody is between the failure and its report
			if failures.Load() != 1 {
				t.Fatalf("call %d: OnFailure was called %d times", n, failures.Load())
			}
		}
		w.cfg.FS, w.cfg.OnFailure = w.mem, nil
		w.crash(t, 0, uint64(n))
		_ = w.l.Close()
	}
}

// expectFailed waits for the failure, and checks that it is told everywhere.
func expectFailed(t *testing.T, l *Log, n int64) {
	t.Helper()
	l.background.Wait() // both goroutines end when the disk has failed
	if !errors.Is(l.Failed(), storage.ErrIO) {
		t.Fatalf("call %d: the log did not fail: %v", n, l.Failed())
	}
	if err := l.Wait(context.Background(), l.End()+1); !errors.Is(err, storage.ErrIO) {
		t.Fatalf("call %d: Wait says %v", n, err)
	}
	if err := l.Wait(context.Background(), l.Durable()); err != nil {
		t.Fatalf("call %d: Wait for what is durable says %v", n, err)
	}
	if _, err := l.Group(key(1)).Append([]Entry{{Index: l.Group(key(1)).lastLocked() + 1}}); !errors.Is(err, storage.ErrIO) {
		t.Fatalf("call %d: Append says %v", n, err)
	}
	if err := l.Close(); !errors.Is(err, storage.ErrIO) {
		t.Fatalf("call %d: Close says %v", n, err)
	}
}

// tryAppend appends an entry and waits for it, unless the log fails.
func (w *world) tryAppend(k GroupKey, size int) {
	w.serial++
	e := testEntry(w.model(len(w.ops))[k].last()+1, w.term, size)
	e.AppendedAt = w.serial
	i := w.plan(modelOp{key: k, entries: []Entry{e}})
	end, err := w.l.Group(k).Append([]Entry{e})
	if err == nil && w.l.Wait(context.Background(), end) == nil {
		w.done(i, end)
	}
}

// TestReadFails: a failing read is an error of that read only.
func TestReadFails(t *testing.T) {
	var broken atomic.Bool
	mem := vfs.NewMem()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && broken.Load() {
			return syscall.EIO
		}
		return nil
	}))
	at := fill(t, fs)
	l := openLog(t, testConfig(fs, threeGroups()...))
	broken.Store(true)
	if _, err := l.Group(key(1)).Get(3); !errors.Is(err, storage.ErrIO) {
		t.Fatalf("Get says %v", err)
	}
	if err := l.ReadAt(at[key(1)][3], make([]byte, 10)); !errors.Is(err, storage.ErrIO) {
		t.Fatalf("ReadAt says %v", err)
	}
	mustWait(t, l, mustAppend(t, l.Group(key(1)), testEntry(11, 1, 100)))
	broken.Store(false)
	checkEntry(t, l.Group(key(1)), testEntry(3, 1, 3000))
	flip(t, fs, at[key(1)][3]+500)
	if _, err := l.Group(key(1)).Get(3); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatalf("Get of a rotten entry says %v", err)
	}
	broken.Store(true)
	_ = l.Close()
	if _, err := Open(testConfig(fs, threeGroups()...)); !errors.Is(err, storage.ErrIO) {
		t.Fatalf("Open says %v", err)
	}
}

// TestNoSpace: as long as a free segment is left a full disk does no harm; recycling makes room again. When records wait for
// a segment and there is no space for it they wait until there is.
func TestNoSpace(t *testing.T) {
	var full atomic.Bool
	mem := vfs.NewMem()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}))
	cfg := testConfig(fs)
	cfg.OnFailure = func(err error) { t.Errorf("the disk has failed: %v", err) }
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	awaitFree(t, l, 2)
	full.Store(true)
	index := uint64(0)
	appendSegments := func(ctx context.Context, n SegmentNo) error {
		for until := l.End().Segment() + n; l.End().Segment() < until; {
			index++
			end, err := g.Append([]Entry{testEntry(index, 1, 8000)})
			if err != nil {
				return err
			}
			if err := l.Wait(ctx, end); err != nil {
				return err
			}
		}
		return nil
	}
	for range 5 {
		if err := appendSegments(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		if _, free := l.Space(); free != 0 {
			t.Fatalf("%d bytes are free", free)
		}
		l.DurableCheckpoint(key(1), index, 1, g.NextNeeded(index))
		g.Compact(index)
		recycled := 0
		for _, s := range l.Segments() {
			if s.State == SegmentSealed && l.Recycle(s.No, unused) == nil {
				recycled++
			}
		}
		if recycled < 2 {
			t.Fatalf("%d segments could be recycled", recycled)
		}
		awaitFree(t, l, 2)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stuck := make(chan error, 1)
	go func() { stuck <- appendSegments(ctx, 3) }()
	for deadline := time.Now().Add(30 * time.Second); !l.Full(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the log does not say that it is full")
		}
	}
	select {
	case err := <-stuck:
		t.Fatalf("without a free segment: %v", err)
	default:
	}
	full.Store(false)
	if err := <-stuck; err != nil || l.Failed() != nil {
		t.Fatalf("with room again: %v, %v", err, l.Failed())
	}
	if l.Full() {
		t.Error("the log says still that it is full")
	}
}

// TestCloseWithoutSpace: a log that waits for room is closed in the end, says why not all is written, and has lost nothing
// of what it reported durable.
func TestCloseWithoutSpace(t *testing.T) {
	for i, kind := range []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWriteAt, errorfs.OpCreate, errorfs.OpFileWriteAt} {
		var full atomic.Bool
		mem := vfs.NewMem()
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == kind && full.Load() {
				return syscall.EDQUOT
			}
			return nil
		}))
		cfg := testConfig(fs)
		l := openLog(t, cfg)
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		durable := uint64(0)
		for ; durable < 5; durable++ {
			mustWait(t, l, mustAppend(t, g, testEntry(durable+1, 1, 3000)))
		}
		full.Store(true)
		for i, until := durable, l.End().Segment()+5; l.End().Segment() < until; i++ {
			mustAppend(t, g, testEntry(i+1, 1, 3000))
		}
		for deadline := time.Now().Add(30 * time.Second); !l.Full(); runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatal("the log does not say that it is full")
			}
		}
		if i >= 2 { // whoever waits for the log ends before it is closed
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			l.StopWaiting()
			if err := l.Wait(ctx, l.End()); !errors.Is(err, storage.ErrNoSpace) {
				t.Errorf("a log that waits no more for room says %v", err)
			}
			cancel()
		}
		if err := l.Close(); !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("Close says %v", err)
		}
		full.Store(false)
		cfg.Groups = []GroupStart{{Key: key(1)}}
		l = openLog(t, cfg)
		for i := range durable {
			checkEntry(t, l.Group(key(1)), testEntry(i+1, 1, 3000))
		}
	}
}

// TestRecycledFileOutlivesNoSpace: a file to be used again that cannot be renamed or removed for want of room is still
// there when there is room: it is used, or given back. It guards keepRecycled (tried: without, its space is lost until the
// next start).
func TestRecycledFileOutlivesNoSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && slices.Contains([]errorfs.OpKind{errorfs.OpRename, errorfs.OpRemove, errorfs.OpCreate}, op.Kind) {
				return syscall.ENOSPC
			}
			return nil
		}))
		cfg := testConfig(fs)
		cfg.OnFailure = func(err error) { t.Errorf("the disk has failed: %v", err) }
		l := openLog(t, cfg)
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for index := uint64(1); l.End().Segment() < 4; index++ {
			mustWait(t, l, mustAppend(t, g, testEntry(index, 1, 8000)))
		}
		time.Sleep(noSpaceRetry) // all that is wanted is ready
		full.Store(true)
		last := g.LastIndex()
		l.DurableCheckpoint(key(1), last, 1, g.NextNeeded(last))
		g.Compact(last)
		for no := SegmentNo(1); no < 4; no++ {
			if err := l.Recycle(no, unused); err != nil {
				t.Fatal(err)
			}
		}
		for index := last + 1; l.End().Segment() < 6; index++ { // uses up what was ready
			mustWait(t, l, mustAppend(t, g, testEntry(index, 1, 8000)))
		}
		time.Sleep(10 * noSpaceRetry)
		if n := l.GiveBack(1 << 60); n != 0 || !l.Full() {
			t.Fatalf("without room %d bytes were given back; full: %v", n, l.Full())
		}
		full.Store(false)
		time.Sleep(2 * noSpaceRetry) // two are used again, so that two are ready
		if n := l.GiveBack(1 << 60); n != cfg.SegmentBytes || l.Full() {
			t.Fatalf("with room %d bytes were given back, want one segment; full: %v", n, l.Full())
		}
		if names, err := fs.List(cfg.Dir); err != nil || len(names) != len(l.Segments()) {
			t.Fatalf("%d segments, and files %v (%v)", len(l.Segments()), names, err)
		}
		_ = l.Close()
	})
}

// TestFileWithoutHeaderGivesItsRoom: a file to be used again whose header finds no room gives its own room back: the next attempt makes a
// file beside it, and would have to find that room a second time. It guards reuse's Remove (tried: without, the file is still there), and that a log without room is full while it
// tries again (tried: with the lack forgotten for the attempt, it is not).
func TestFileWithoutHeaderGivesItsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		var made atomic.Pointer[Log]
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			header := op.Kind == errorfs.OpFileWriteAt && op.Offset == 0 && strings.HasSuffix(op.Path, ".seg")
			if full.Load() && (header || op.Kind == errorfs.OpCreate) {
				if !header && !made.Load().Full() {
					t.Errorf("the log makes %s for want of room, and is not full", op.Path)
				}
				return syscall.ENOSPC
			}
			return nil
		}))
		cfg := testConfig(fs)
		cfg.OnFailure = func(err error) { t.Errorf("the disk has failed: %v", err) }
		l := openLog(t, cfg)
		made.Store(l)
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for index := uint64(1); l.End().Segment() < 4; index++ {
			mustWait(t, l, mustAppend(t, g, testEntry(index, 1, 8000)))
		}
		time.Sleep(noSpaceRetry) // all that is wanted is ready
		full.Store(true)
		last := g.LastIndex()
		l.DurableCheckpoint(key(1), last, 1, g.NextNeeded(last))
		g.Compact(last)
		if err := l.Recycle(1, unused); err != nil {
			t.Fatal(err)
		}
		for index := last + 1; l.End().Segment() < 6; index++ { // uses up what was ready
			mustWait(t, l, mustAppend(t, g, testEntry(index, 1, 8000)))
		}
		time.Sleep(10 * noSpaceRetry)
		l.mu.Lock()
		wanted := l.unready[0].no
		l.mu.Unlock()
		if _, err := fs.Stat(l.path(segmentName(wanted))); !os.IsNotExist(err) || !l.Full() {
			t.Errorf("without room segment %d has a file (%v); full: %v", wanted, err, l.Full())
		}
		full.Store(false)
		time.Sleep(2 * noSpaceRetry)
		if names, err := fs.List(cfg.Dir); err != nil || len(names) != len(l.Segments()) || l.Full() {
			t.Errorf("with room %d segments, and files %v (%v)", len(l.Segments()), names, err)
		}
		_ = l.Close()
	})
}

// heard is what an operator is told.
type heard struct {
	mu   sync.Mutex // guards said
	said strings.Builder
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.said.Write(p)
}

// of returns how often people were told of a lack of space, with records that wait or without.
func (h *heard) of(recordsWait bool) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Count(h.said.String(), fmt.Sprintf("records_wait=%v", recordsWait))
}

// TestLackIsToldOnce: people are told once that there is no space for another segment, and once more when records wait for it, however often
// it is tried; a segment that is recycled and finds no space, either, is no news. After there was space they are told anew. Meanwhile it is
// tried once a second, and the log is full.
//
// Guards, in preparer.go: the comparison in tellLackLocked, where told begins anew, and what is done of lackWaits and lackDue in
// wantedLocked and waitForSpace. Each was taken out once, and failed here.
func TestLackIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		var attempts atomic.Int64
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && (op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpRename) {
				if attempts.Add(1) > 1000 {
					return syscall.EIO // it is tried without a pause
				}
				return syscall.ENOSPC
			}
			return nil
		}))
		var told heard
		cfg := testConfig(fs)
		cfg.OnFailure = func(err error) { t.Errorf("the disk has failed: %v", err) }
		cfg.Logger = slog.New(slog.NewTextHandler(&told, nil))
		l := openLog(t, cfg)
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		want := func(when string, lack, waits int) {
			t.Helper()
			if told.of(false) != lack || told.of(true) != waits {
				t.Errorf("%s: told %d times of a lack, want %d, and %d times that records wait, want %d", when, told.of(false), lack, told.of(true), waits)
			}
			if l.Full() != full.Load() {
				t.Errorf("%s: full: %v", when, l.Full())
			}
		}
		index := uint64(0)
		appendThrough := func(no SegmentNo) {
			for l.End().Segment() < no {
				index++
				if _, err := g.Append([]Entry{testEntry(index, 1, 8000)}); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
		}
		appendThrough(3)
		for round := range 2 {
			time.Sleep(noSpaceRetry) // all that is wanted is ready
			want("there is space", round, round)
			full.Store(true)
			last := l.End().Segment()
			appendThrough(last + 1)
			before := attempts.Load()
			time.Sleep(20 * noSpaceRetry)
			if n := attempts.Load() - before; n < 15 || n > 25 {
				t.Errorf("%d attempts in 20 s", n)
			}
			want("nobody waits", round+1, round)
			appendThrough(last + SegmentNo(cfg.FreeSegments) + 1)
			time.Sleep(20 * noSpaceRetry)
			want("records wait", round+1, round+1)
			l.DurableCheckpoint(key(1), index-10, 1, g.NextNeeded(index-10))
			g.Compact(index - 10)
			if err := l.Recycle(SegmentNo(round+1), unused); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * noSpaceRetry)
			want("one is recycled, and finds no space", round+1, round+1)
			full.Store(false)
			time.Sleep(2 * noSpaceRetry)
		}
		want("there is space again", 2, 2)
		full.Store(true)
		appendThrough(l.End().Segment() + 1)
		l.StopWaiting()
		before := attempts.Load()
		time.Sleep(20 * noSpaceRetry)
		if n := attempts.Load() - before; n > 1 {
			t.Errorf("%d attempts in 20 s in which nothing waits for space", n)
		}
		_ = l.Close()
	})
}

// awaitFree waits until n segments are ready.
func awaitFree(t testing.TB, l *Log, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		l.mu.Lock()
		ready := len(l.unready) == 0 && len(l.future) >= n
		l.mu.Unlock()
		if ready {
			return
		}
	}
	t.Fatalf("no %d free segments", n)
}

// TestConcurrentAppends lets many groups append, read, truncate and checkpoint at once.
func TestConcurrentAppends(t *testing.T) {
	cfg := testConfig(vfs.NewMem())
	cfg.MaxTailBytes, cfg.CacheBytes = 100<<10, 50<<10
	cfg.IdleAfter = time.Hour // a closing record would be the end of the log, and nobody waits for it
	l := openLog(t, cfg)
	var work sync.WaitGroup
	var order sync.Mutex
	var reached Position
	for n := 1; n <= 16; n++ {
		g, err := l.CreateGroup(key(n), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			for i := uint64(1); i <= 100; i++ {
				end := mustAppend(t, g, testEntry(i, 1, 1000))
				l.Notify(end, func(err error) {
					order.Lock()
					defer order.Unlock()
					if err != nil || l.Durable() < end {
						t.Errorf("notified of %s: %v; durable is %s", end, err, l.Durable())
					}
					reached = max(reached, end)
				})
				checkEntry(t, g, testEntry(i, 1, 1000))
				if i%10 == 0 {
					mustWait(t, l, end)
					l.DurableCheckpoint(g.Key(), i-5, 1, g.NextNeeded(i-5))
					g.Compact(i - 5)
					for _, s := range l.Segments() {
						_ = l.Recycle(s.No, unused)
					}
				}
			}
		})
	}
	work.Wait()
	mustWait(t, l, l.End())
	order.Lock()
	defer order.Unlock()
	if reached != l.End() {
		t.Fatalf("notified up to %s of %s", reached, l.End())
	}
}

// TestClaimedSegmentWaitsForRoom: records wait for a segment that is being made, from a new file or a recycled one, and there is no room at
// one of its calls, once or for a while. That is no failure of the disk: nothing of the segment is half there, the records wait until
// there is room, and a power cut right after finds all of them.
//
// It guards in prepareOne that a claimed segment is tried again; taken out once, the disk failed.
func TestClaimedSegmentWaitsForRoom(t *testing.T) {
	makes := func(op errorfs.Op) bool { // what a file system may refuse for want of room
		switch op.Kind {
		case errorfs.OpCreate, errorfs.OpRename, errorfs.OpFilePreallocate, errorfs.OpFileWrite, errorfs.OpFileWriteAt:
			return true
		}
		return false
	}
	for n := int64(1); ; n++ {
		refused := int64(0)
		for _, times := range []int64{1, 3} {
			synctest.Test(t, func(t *testing.T) {
				w, from, counts := newWorld(1), new(atomic.Int64), new(atomic.Int64)
				from.Store(1 << 60)
				mem := vfs.NewCrashableMem()
				root, err := mem.OpenDir("")
				if err == nil {
					err = root.Sync()
				}
				if err != nil {
					t.Fatal(err)
				}
				w.mem, w.cfg.FreeSegments = mem, 1
				w.cfg.OnFailure = func(err error) { t.Errorf("call %d, %d times: the disk has failed: %v", n, times, err) }
				w.cfg.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if makes(op) {
						if c := counts.Add(1); c >= from.Load() && c < from.Load()+times {
							return syscall.ENOSPC
						}
					}
					return nil
				}))
				w.l = openLog(t, w.config(w.cfg.FS))
				from.Store(counts.Load() + n)
				for i := range 12 {
					w.append(t, key(1), 9000, 9000)
					w.waitAll(t)
					if i%4 == 3 {
						w.checkpoint(t, key(1), 1)
						w.recycle()
					}
				}
				if counts.Load() >= from.Load() {
					refused++
				}
				from.Store(1 << 60) // closing does not wait
				w.cfg.FS, w.cfg.OnFailure = mem, nil
				w.crash(t, 0, 1)
				if err := w.l.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		if refused == 0 {
			return
		}
	}
}
