package segment

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
)

// tb is what *testing.T, *testing.B and *rapid.T have in common.
type tb interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// world is a log beside a model of it: the list of all operations in the order of their positions. After a crash the
// log must be what some prefix of that list makes, and at least the part that was reported durable.
type world struct {
	mem *vfs.MemFS
	cfg Config // without groups
	l   *Log

	mu     sync.Mutex
	ops    []modelOp
	starts map[GroupKey]GroupStart // the checkpoints, which are durable the moment they are set
	serial int64
	term   uint64
	copies map[GroupKey]*Copies // on their way
}

// modelOp is one operation: entries to append, or a truncation (from > 0), or a reset.
type modelOp struct {
	key     GroupKey
	entries []Entry
	from    uint64
	reset   uint64
	end     Position // 0 until the log told it
}

// modelLog is what a log should hold: entries base+1, base+2, ...
type modelLog struct {
	base    uint64
	entries []Entry
}

func (m *modelLog) last() uint64 { return m.base + uint64(len(m.entries)) }

func (m *modelLog) do(op modelOp) {
	switch {
	case op.reset > 0:
		m.base, m.entries = op.reset, nil
	case op.from > 0:
		if op.from <= m.last() {
			m.entries = m.entries[:max(op.from, m.base+1)-m.base-1]
		}
	default:
		m.entries = append(m.entries, op.entries...)
	}
}

func newWorld(groups int) *world {
	w := &world{mem: vfs.NewCrashableMem(), starts: make(map[GroupKey]GroupStart), term: 1}
	w.cfg = Config{FS: w.mem, Dir: "log", Store: testStore, SegmentBytes: 32 << 10, FreeSegments: 2, CacheBytes: 20 << 10,
		RetainBytes: 8 << 10, Aligned: true, alignedBytes: storage.BlockSize}
	for n := 1; n <= groups; n++ {
		w.starts[key(n)] = GroupStart{Key: key(n)}
	}
	return w
}

func (w *world) config(fs vfs.FS) Config {
	cfg := w.cfg
	cfg.FS = fs
	for _, s := range w.starts {
		cfg.Groups = append(cfg.Groups, s)
	}
	return cfg
}

func (w *world) keys() []GroupKey {
	keys := make([]GroupKey, 0, len(w.starts))
	for k := range w.starts {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b GroupKey) int { return int(a.Group) - int(b.Group) })
	return keys
}

// model replays the first n operations.
func (w *world) model(n int) map[GroupKey]*modelLog {
	m := make(map[GroupKey]*modelLog)
	for k := range w.starts {
		m[k] = &modelLog{}
	}
	for _, op := range w.ops[:n] {
		m[op.key].do(op)
	}
	return m
}

// durableOps is how many operations are in what has been reported durable.
func (w *world) durableOps(durable Position) int {
	n := 0
	for i, op := range w.ops {
		if op.end != 0 && op.end <= durable {
			n = i + 1
		}
	}
	return n
}

// plan adds an operation to the model before it is done, so that a crash in the middle finds it there.
func (w *world) plan(op modelOp) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ops = append(w.ops, op)
	return len(w.ops) - 1
}

func (w *world) nextTerm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.term++
}

func (w *world) done(i int, end Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ops[i].end = end
}

func (w *world) append(t tb, k GroupKey, sizes ...int) {
	t.Helper()
	m := w.model(len(w.ops))[k]
	next := max(m.last(), w.starts[k].AppliedIndex) + 1
	var entries []Entry
	for i, size := range sizes {
		w.serial++
		e := testEntry(next+uint64(i), w.term, size)
		e.AppendedAt = w.serial
		e.Cold = w.serial/8%2 == 0 // some batches are a follower's as a whole
		if w.serial%3 != 0 {       // both forms of records are in every log
			withBlocks(&e)
		}
		entries = append(entries, e)
	}
	first := len(w.ops)
	for _, e := range entries { // one each: an append of several is not atomic
		w.plan(modelOp{key: k, entries: []Entry{e}})
	}
	end, err := w.l.Group(k).Append(entries)
	if err != nil {
		t.Fatalf("append to %s: %v", k, err)
	}
	for i := range entries {
		w.done(first+i, end)
	}
}

// truncate drops the last entries, as far as they are above the checkpoint.
func (w *world) truncate(t tb, k GroupKey, count uint64) {
	t.Helper()
	m := w.model(len(w.ops))[k]
	from := max(m.last()+1-min(count, m.last()), w.starts[k].AppliedIndex+1)
	w.nextTerm()
	i := w.plan(modelOp{key: k, from: from})
	if err := w.l.Group(k).TruncateSuffix(from); err != nil {
		t.Fatalf("truncate %s: %v", k, err)
	}
	w.done(i, w.l.End())
}

// reset installs a manifest some entries beyond the log.
func (w *world) reset(t tb, k GroupKey) {
	t.Helper()
	m := w.model(len(w.ops))[k]
	applied := max(m.last(), w.starts[k].AppliedIndex) + 3
	g := w.l.Group(k)
	mustWait(t, w.l, w.l.End())
	w.nextTerm()
	next := g.NextNeeded(applied)
	w.mu.Lock()
	w.starts[k] = GroupStart{Key: k, AppliedIndex: applied, AppliedTerm: w.term, From: next}
	w.mu.Unlock()
	i := w.plan(modelOp{key: k, reset: applied})
	if err := g.Reset(applied, w.term); err != nil {
		t.Fatalf("reset %s: %v", k, err)
	}
	w.done(i, w.l.End())
	w.l.DurableCheckpoint(k, applied, w.term, next)
}

// checkpoint stores a checkpoint of everything but the last few entries, when that is durable.
func (w *world) checkpoint(t tb, k GroupKey, behind uint64) {
	t.Helper()
	g := w.l.Group(k)
	last := g.LastIndex()
	if last <= behind || last-behind <= w.starts[k].AppliedIndex {
		return
	}
	applied := last - behind
	e, err := g.Get(applied)
	if err != nil {
		t.Fatal(err)
	}
	end, ok := g.EndOf(applied, e.Term)
	if !ok {
		t.Fatalf("EndOf %d", applied)
	}
	mustWait(t, w.l, end)
	next := g.NextNeeded(applied)
	w.mu.Lock()
	w.starts[k] = GroupStart{Key: k, AppliedIndex: applied, AppliedTerm: e.Term, From: next}
	w.mu.Unlock()
	w.l.DurableCheckpoint(k, applied, e.Term, next)
	g.Compact(applied)
}

// copy appends the entries once more that no checkpoint covers. It changes nothing that the model knows.
func (w *world) copy(t tb, k GroupKey) {
	t.Helper()
	c, err := w.l.Group(k).CopyUncovered(1 << 20)
	if err != nil {
		t.Fatalf("copy entries of %s: %v", k, err)
	}
	if w.copies == nil {
		w.copies = make(map[GroupKey]*Copies)
	}
	if c != nil {
		w.copies[k] = c
	}
}

// adoptCopies stores the checkpoint that there is with the places of copies, as soon as it may.
func (w *world) adoptCopies(k GroupKey) (moved bool) {
	c, s := w.copies[k], w.starts[k]
	if c == nil || c.g != w.l.Group(k) || !c.Adopt() {
		return false
	}
	delete(w.copies, k)
	next := max(w.l.Group(k).NextNeeded(s.AppliedIndex), s.From)
	moved = next > s.From
	s.From = next
	w.mu.Lock()
	w.starts[k] = s
	w.mu.Unlock()
	w.l.DurableCheckpoint(k, s.AppliedIndex, s.AppliedTerm, s.From)
	return moved
}

// recycle offers every segment for recycling; the log refuses what it needs.
func (w *world) recycle() {
	for _, s := range w.l.Segments() {
		if s.State == SegmentSealed {
			_ = w.l.Recycle(s.No, unused)
		}
	}
}

// check opens the file system and finds out which prefix of its operations each group holds; at least the durable
// ones. It need not be the same prefix for all: a checkpoint may cover a truncation that is not durable yet.
func (w *world) check(t tb, fs vfs.FS, durable int, what string) (*Log, map[GroupKey]int) {
	t.Helper()
	l, err := Open(w.config(fs))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if d := l.Damaged(); len(d) > 0 {
		t.Fatalf("%s: damaged: %+v", what, d)
	}
	held := make(map[GroupKey]int)
	for _, k := range w.keys() {
		var problems []string
		for n := durable; n <= len(w.ops); n++ {
			problem := w.compare(l, k, n, false)
			if problem == "" {
				held[k] = n
				break
			}
			problems = append(problems, problem)
		}
		if _, ok := held[k]; !ok {
			t.Fatalf("%s: group %s is no prefix of at least %d of %d operations:\n%s", what, k, durable, len(w.ops),
				strings.Join(problems, "\n"))
		}
	}
	return l, held
}

// compare returns how the log of a group differs from the first n operations; "" if it does not. A log that was not
// opened just now may still have entries that a checkpoint covers.
func (w *world) compare(l *Log, k GroupKey, n int, live bool) string {
	m, g, applied := w.model(n)[k], l.Group(k), w.starts[k].AppliedIndex
	want := m.entries[min(uint64(len(m.entries)), max(applied, m.base)-m.base):]
	var last uint64
	if len(want) > 0 {
		last = m.last()
	}
	if got := g.LastIndex(); got != last && !(live && got == m.last()) {
		return fmt.Sprintf("group %s ends at %d, want %d", k, got, last)
	}
	for _, e := range want {
		got, err := g.Get(e.Index)
		if err != nil {
			return fmt.Sprintf("group %s: %v", k, err)
		}
		if got.Term != e.Term || got.AppendedAt != e.AppendedAt || !bytes.Equal(got.Data, e.Data) {
			return fmt.Sprintf("group %s entry %d is term %d number %d, want %d, %d", k, e.Index, got.Term,
				got.AppendedAt, e.Term, e.AppendedAt)
		}
	}
	return ""
}

// adopt takes over what check found: the operations behind it never happened. A checkpoint may be ahead of the log,
// when it came with a manifest and the reset of the log was lost.
func (w *world) adopt(l *Log, held map[GroupKey]int) {
	var ops []modelOp
	for i, op := range w.ops {
		if i < held[op.key] {
			op.end = 1 // what was found is durable
			ops = append(ops, op)
		}
	}
	w.l, w.ops = l, ops
	for k, m := range w.model(len(ops)) {
		if s := w.starts[k]; m.last() < s.AppliedIndex {
			w.ops = append(w.ops, modelOp{key: k, reset: s.AppliedIndex, end: 1})
		}
	}
	w.term++
}

// crash cuts the power: unsynced pages survive with the given probability. It goes on with what is left.
func (w *world) crash(t tb, percent int, seed uint64) {
	t.Helper()
	w.mu.Lock()
	durable := w.durableOps(w.l.Durable())
	clone := w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, 1))})
	w.mu.Unlock()
	_ = w.l.Close()
	w.mem = clone
	w.adopt(w.check(t, clone, durable, "after a crash"))
}

// restart closes the log and opens it again.
func (w *world) restart(t tb) {
	t.Helper()
	if err := w.l.Close(); err != nil {
		t.Fatal(err)
	}
	w.l, _ = w.check(t, w.cfg.FS, len(w.ops), "after a restart")
}

func (w *world) waitAll(t tb) {
	t.Helper()
	if err := w.l.Wait(context.Background(), w.l.End()); err != nil {
		t.Fatal(err)
	}
}

// panicTB fails by a panic, because Fatal in a goroutine of the log would only end that goroutine.
type panicTB struct{ tb }

func (t panicTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (t panicTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
