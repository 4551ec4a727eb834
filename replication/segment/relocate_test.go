package segment

import (
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestCopiesMovePositions: entries that nobody commits hold the log until copies of them are adopted; what is appended and
// truncated behind the copies is found again with them. Not before the copies are durable does anything move.
func TestCopiesMovePositions(t *testing.T) {
	w := newWorld(2)
	w.l = openLog(t, w.config(w.mem))
	stalled, busy := key(1), key(2)
	w.append(t, stalled, 100, 3000, 5000)
	w.checkpoint(t, stalled, 2) // covers the first
	need := w.starts[stalled].From
	for range 40 {
		w.append(t, busy, 6000)
	}
	w.checkpoint(t, busy, 0)
	w.recycle()
	sealed := func() (n int) {
		for _, s := range w.l.Segments() {
			if s.State == SegmentSealed {
				n++
			}
		}
		return n
	}
	if n := sealed(); n < 5 {
		t.Fatalf("%d segments are held: the test shows nothing", n)
	}
	if n := w.l.Group(stalled).UncoveredBytes(); n < 8000 || n > 9000 {
		t.Errorf("%d bytes are not covered", n)
	}
	if c, err := w.l.Group(stalled).CopyUncovered(8000); c != nil || err != nil {
		t.Fatalf("more bytes than are allowed: %v, %v", c, err)
	}
	w.copy(t, stalled)
	if w.copies[stalled] == nil {
		t.Fatal("nothing was copied")
	}
	w.append(t, stalled, 700)
	w.truncate(t, stalled, 2) // the copy of entry 3, and entry 4
	w.append(t, stalled, 800)
	w.waitAll(t)
	if w.adoptCopies(stalled) || w.copies[stalled] != nil {
		t.Error("copies count of which one was truncated, or are waited for")
	}
	w.copy(t, stalled)
	w.append(t, stalled, 900)
	w.waitAll(t)
	if !w.adoptCopies(stalled) || w.starts[stalled].From <= need {
		t.Fatalf("the log is needed from %s on; it was from %s on", w.starts[stalled].From, need)
	}
	w.checkpoint(t, busy, 0)
	w.recycle()
	if n := sealed(); n > 1 {
		t.Errorf("%d segments are still held", n)
	}
	for range 10 {
		w.append(t, busy, 6000) // what was appended before is read from the disk
	}
	w.waitAll(t)
	if problem := w.compare(w.l, stalled, len(w.ops), true); problem != "" {
		t.Error(problem)
	}
	w.restart(t)
	w.copy(t, stalled) // once more, of copies
	w.waitAll(t)
	w.crash(t, 0, 1)
	_ = w.l.Close()
}

// TestCopiesOfWhatChanged: a log that changes between the look at it and the copies is not copied, and copies that are not durable
// are not adopted.
func TestCopiesOfWhatChanged(t *testing.T) {
	var disk slowSync
	l := openLog(t, testConfig(errorfs.Wrap(vfs.NewMem(), &disk)))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := g.CopyUncovered(1 << 20); c != nil || err != nil {
		t.Fatalf("of an empty log: %v, %v", c, err)
	}
	for i := uint64(1); i <= 3; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 500)))
	}
	looked := g.uncovered(1 << 20)
	current := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return looked.currentLocked()
	}
	if !current() {
		t.Fatal("nothing has changed")
	}
	mustWait(t, l, mustAppend(t, g, testEntry(4, 1, 500)))
	if current() {
		t.Error("an entry was appended")
	}
	looked = g.uncovered(1 << 20)
	if err := g.TruncateSuffix(4); err != nil {
		t.Fatal(err)
	}
	mustWait(t, l, mustAppend(t, g, testEntry(4, 2, 500)))
	if current() {
		t.Error("an entry was replaced")
	}
	pass := disk.hold(true)
	c, err := g.CopyUncovered(1 << 20)
	if err != nil || c == nil {
		t.Fatalf("%v, %v", c, err)
	}
	need := g.NextNeeded(0)
	if c.Adopt() || g.NextNeeded(0) != need {
		t.Error("copies count that a power cut would take")
	}
	disk.hold(false)
	close(pass)
	mustWait(t, l, c.end)
	if !c.Adopt() || g.NextNeeded(0) != c.to[0].at {
		t.Errorf("the log is needed from %s on, the copies begin at %s", g.NextNeeded(0), c.to[0].at)
	}
	for i := uint64(1); i <= 3; i++ {
		checkEntry(t, g, testEntry(i, 1, 500))
	}
	checkEntry(t, g, testEntry(4, 2, 500))
}

// TestCopiesBesideTruncation: copies of entries that were truncated before they counted never do. The truncation is not durable, so
// the log is needed from the first truncated entry on, and no entry before that may have moved behind it. Guards I7: Adopt's look
// at all entries; without it the log began behind entry 1.
func TestCopiesBesideTruncation(t *testing.T) {
	var disk slowSync
	l := openLog(t, testConfig(errorfs.Wrap(vfs.NewMem(), &disk)))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 3; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 500)))
	}
	c, err := g.CopyUncovered(1 << 20)
	if err != nil || c == nil {
		t.Fatalf("%v, %v", c, err)
	}
	mustWait(t, l, c.end)
	pass := disk.hold(true)
	if err := g.TruncateSuffix(2); err != nil {
		t.Fatal(err)
	}
	if need := g.NextNeeded(0); !c.Adopt() || g.NextNeeded(0) != need || need != c.from[0] {
		t.Errorf("the log is needed from %s on, and was from %s, where entry 1 is at %s", g.NextNeeded(0), need, c.from[0])
	}
	disk.hold(false)
	close(pass)
}

// TestCopiesInPart: a power cut leaves the first of the copies. Then recovery takes none: the log is needed from the oldest place of an
// entry on. Guards I7: applyEntry keeps what it has read; with the later place the log began behind entry 2.
func TestCopiesInPart(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l := openLog(t, testConfig(mem))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var places []Position
	for i := uint64(1); i <= 2; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 500)))
		places = append(places, g.NextNeeded(i-1))
	}
	first, err := g.Get(1)
	if err != nil {
		t.Fatal(err)
	}
	records, _, err := g.prepare([]Entry{first})
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.pushLocked(&records[0], l.now())
	l.mu.Unlock()
	l.committed.Signal()
	mustWait(t, l, l.End())
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	cfg := testConfig(clone)
	cfg.Groups = []GroupStart{{Key: key(1), From: places[0]}}
	l2 := openLog(t, cfg)
	if d := l2.Damaged(); len(d) > 0 {
		t.Fatalf("%+v", d)
	}
	if need := l2.Group(key(1)).NextNeeded(0); need != places[0] {
		t.Errorf("the log is needed from %s on, entry 2 is at %s", need, places[1])
	}
}

// TestCopiesBesideAppend: what a leader sends while entries are read for their copies is not between them: a scan that begins at
// the copies would find a gap. It guards currentLocked in CopyUncovered.
func TestCopiesBesideAppend(t *testing.T) {
	var g *GroupLog
	var during atomic.Pointer[func()] // once, when an entry is read
	cfg := testConfig(nil)
	cfg.FS = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt {
			if f := during.Swap(nil); f != nil {
				(*f)()
			}
		}
		return nil
	}))
	cfg.CacheBytes = 1
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 3; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 500)))
	}
	appends := func() { mustAppend(t, g, testEntry(4, 1, 500)) }
	during.Store(&appends)
	if c, err := g.CopyUncovered(1 << 20); c != nil || err != nil || during.Load() != nil {
		t.Fatalf("an entry was appended meanwhile: %v, %v", c, err)
	}
	mustWait(t, l, l.End())
	if c, err := g.CopyUncovered(1 << 20); c == nil || err != nil || len(c.to) != 4 {
		t.Fatalf("%v, %v", c, err)
	}
}

// TestCopiesPowerCut is TestPowerCutAtEveryCall with little else than copies: the power goes before every call that changes
// something, with entries that wait for a majority before, between and behind truncations.
func TestCopiesPowerCut(t *testing.T) {
	for _, percent := range []int{0, 60} {
		w := newWorld(3)
		calls, active := uint64(0), false
		w.cfg.FS = errorfs.Wrap(w.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
				return nil
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if active {
				calls++
				w.cut(panicTB{t}, percent, calls)
			}
			return nil
		}))
		w.l = openLog(t, w.config(w.cfg.FS))
		w.mu.Lock()
		active = true
		w.mu.Unlock()
		rng := rand.New(rand.NewPCG(3, uint64(percent)))
		moved := 0
		for range 18 {
			k := key(1 + rng.IntN(2))
			w.append(t, k, rng.IntN(4000), rng.IntN(4000))
			w.copy(t, k)
			if rng.IntN(2) == 0 {
				w.truncate(t, k, uint64(1+rng.IntN(2)))
			}
			if rng.IntN(3) == 0 {
				w.waitAll(t)
			}
			for k := range maps.Clone(w.copies) {
				if w.adoptCopies(k) {
					moved++
				}
			}
			if rng.IntN(4) == 0 {
				w.checkpoint(t, k, uint64(1+rng.IntN(2)))
			}
			w.append(t, key(3), 6000)
			w.checkpoint(t, key(3), 0)
			w.recycle()
		}
		w.waitAll(t)
		w.mu.Lock()
		active = false
		w.mu.Unlock()
		if calls < 50 || moved < 3 {
			t.Fatalf("%d calls, %d moves", calls, moved)
		}
		w.restart(t)
		_ = w.l.Close()
	}
}
