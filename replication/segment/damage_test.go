package segment

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	storage "github.com/storaged/storaged"
)

// fill makes a log of three groups with ten entries each, interleaved, every entry synced by itself so that durable
// marks follow closely, and closes it. It returns the positions of the records, by group and index.
func fill(t testing.TB, fs vfs.FS) map[GroupKey][]Position {
	t.Helper()
	l := openLog(t, testConfig(fs))
	at := make(map[GroupKey][]Position)
	for n := 1; n <= 3; n++ {
		if _, err := l.CreateGroup(key(n), 0, 0); err != nil {
			t.Fatal(err)
		}
		at[key(n)] = []Position{0}
	}
	for i := uint64(1); i <= 10; i++ {
		for n := 1; n <= 3; n++ {
			g := l.Group(key(n))
			mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 3000)))
			at[key(n)] = append(at[key(n)], g.entries[i-1].at)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return at
}

func threeGroups() []GroupStart {
	return []GroupStart{{Key: key(1)}, {Key: key(2)}, {Key: key(3)}}
}

// flip changes one bit of the log on the disk.
func flip(t testing.TB, fs vfs.FS, p Position) {
	t.Helper()
	f, err := fs.OpenReadWrite("log/"+segmentName(p.Segment()), writeCategory)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, int64(p.Offset())); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, int64(p.Offset())); err != nil {
		t.Fatal(err)
	}
}

func damagedGroups(l *Log) []storage.GroupID {
	var ids []storage.GroupID
	for _, d := range l.Damaged() {
		ids = append(ids, d.Key.Group)
	}
	slices.Sort(ids)
	return ids
}

func expectDamaged(t testing.TB, l *Log, want ...storage.GroupID) {
	t.Helper()
	if got := damagedGroups(l); !slices.Equal(got, want) {
		t.Fatalf("damaged groups %v, want %v: %+v", got, want, l.Damaged())
	}
}

// TestRotInPayload: a flipped bit in the data of a durable entry gives up that replica, and no other; the others
// keep all entries. It guards the comparison of r.proven in recovery.scan (without it the log ends there and nobody
// is told), and that the damage is seen again at every later start.
func TestRotInPayload(t *testing.T) {
	fs := vfs.NewMem()
	at := fill(t, fs)
	flip(t, fs, at[key(2)][4]+200)
	for range 2 {
		l := openLog(t, testConfig(fs, threeGroups()...))
		expectDamaged(t, l, 2)
		for i := uint64(1); i <= 10; i++ {
			checkEntry(t, l.Group(key(1)), testEntry(i, 1, 3000))
			checkEntry(t, l.Group(key(3)), testEntry(i, 1, 3000))
		}
		if _, err := l.Group(key(2)).Append([]Entry{testEntry(4, 2, 10)}); !errors.Is(err, storage.ErrCorrupt) {
			t.Fatalf("append to a damaged group: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRotInHeader: a flipped bit anywhere in a header of a durable record gives up every replica that may have had the
// record, but not one whose checkpoint lies behind it. It guards hurtAll.
func TestRotInHeader(t *testing.T) {
	for offset := Position(0); offset < recordHeaderBytes; offset++ {
		fs := vfs.NewMem()
		at := fill(t, fs)
		flip(t, fs, at[key(2)][4]+offset)
		groups := threeGroups()
		groups[2] = GroupStart{Key: key(3), AppliedIndex: 6, AppliedTerm: 1, From: at[key(3)][7]}
		l := openLog(t, testConfig(fs, groups...))
		expectDamaged(t, l, 1, 2)
		if first, last := l.Group(key(3)).FirstIndex(), l.Group(key(3)).LastIndex(); first != 7 || last != 10 {
			t.Fatalf("group 3 has %d to %d", first, last)
		}
		_ = l.Close()
	}
}

// TestRotAtTheEnd: the last entry of an idle log rots. Only the closing record proves that it was durable. It guards
// the closing record.
func TestRotAtTheEnd(t *testing.T) {
	for _, offset := range []Position{10, 500} {
		fs := vfs.NewMem()
		at := fill(t, fs)
		flip(t, fs, at[key(3)][10]+offset)
		l := openLog(t, testConfig(fs, threeGroups()...))
		if offset == 500 {
			expectDamaged(t, l, 3)
		} else {
			expectDamaged(t, l, 1, 2, 3)
		}
		_ = l.Close()
	}
}

// TestCheckpointProves: the end of the log is gone, and the only proof that it was ever there is where a checkpoint
// wants recovery to begin. It guards r.proven in recovery.start.
func TestCheckpointProves(t *testing.T) {
	fs := vfs.NewMem()
	at := fill(t, fs)
	cut := at[key(1)][5]
	truncateFile(t, fs, cut)
	for no := cut.Segment() + 1; fs.Remove("log/"+segmentName(no)) == nil; no++ {
	}
	groups := threeGroups()
	groups[2] = GroupStart{Key: key(3), AppliedIndex: 9, AppliedTerm: 1, From: at[key(3)][10]}
	for range 2 {
		l := openLog(t, testConfig(fs, groups...))
		got := damagedGroups(l)
		if !slices.Contains(got, 1) || !slices.Contains(got, 2) {
			t.Fatalf("damaged: %v", got)
		}
		_ = l.Close()
	}
}

// truncateFile cuts a segment file off.
func truncateFile(t testing.TB, fs vfs.FS, at Position) {
	t.Helper()
	name := "log/" + segmentName(at.Segment())
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, at.Offset())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	f, err = fs.Create(name, writeCategory)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

// TestTruncatedSegment: a segment file lost its end in the middle of the log: damage, because later segments prove
// that it was durable.
func TestTruncatedSegment(t *testing.T) {
	fs := vfs.NewMem()
	at := fill(t, fs)
	if at[key(1)][10].Segment() == at[key(1)][3].Segment() {
		t.Fatal("the log has one segment only")
	}
	truncateFile(t, fs, at[key(1)][3]+1000)
	l := openLog(t, testConfig(fs, threeGroups()...))
	expectDamaged(t, l, 1, 2, 3)
}

// TestMissingSegment: the same, with the whole file gone.
func TestMissingSegment(t *testing.T) {
	fs := vfs.NewMem()
	at := fill(t, fs)
	if err := fs.Remove("log/" + segmentName(at[key(1)][3].Segment())); err != nil {
		t.Fatal(err)
	}
	groups := threeGroups()
	for i := range groups {
		groups[i].From = at[key(1)][1]
	}
	l := openLog(t, testConfig(fs, groups...))
	expectDamaged(t, l, 1, 2, 3)
}

// TestSegmentHeaderRot: the header block of a segment in use is not needed to read its records.
func TestSegmentHeaderRot(t *testing.T) {
	fs := vfs.NewMem()
	at := fill(t, fs)
	for _, offset := range []uint32{0, 9, 13, 20, 37, 45, 61} {
		flip(t, fs, PositionOf(at[key(1)][1].Segment(), offset))
		l := openLog(t, testConfig(fs, threeGroups()...))
		expectDamaged(t, l)
		for n := 1; n <= 3; n++ {
			for i := uint64(1); i <= 10; i++ {
				checkEntry(t, l.Group(key(n)), testEntry(i, 1, 3000))
			}
		}
		_ = l.Close()
	}
}

// TestOtherStore: a segment of another store is refused, and not taken for garbage.
func TestOtherStore(t *testing.T) {
	fs := vfs.NewMem()
	fill(t, fs)
	cfg := testConfig(fs)
	cfg.Store = storage.StoreID{9}
	if _, err := Open(cfg); !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("got %v", err)
	}
}

// TestTornPayload: the power went while the last record was written; its header is good and its payload is not. It
// is no damage, and what was appended afterwards is found again at the next start. It guards the checksum in
// recovery.read and cleanAt: without x.own appends go on before what lies behind the end.
func TestTornPayload(t *testing.T) {
	mem := vfs.NewCrashableMem()
	w := newWorld(1)
	w.mem, w.cfg.FS = mem, mem
	w.l = openLog(t, w.config(mem))
	w.append(t, key(1), 5000)
	w.waitAll(t)
	w.writeBehind(t, testEntry(2, 1, 9000), 4096)
	if err := w.l.current.file.Sync(); err != nil {
		t.Fatal(err)
	}
	torn := w.l.End()
	w.crash(t, 100, 1)
	if w.l.Group(key(1)).LastIndex() != 1 {
		t.Fatal("the torn entry is there")
	}
	if w.l.End().Segment() == torn.Segment() {
		t.Fatal("appends go on in a segment with something behind its end")
	}
	w.cfg.FS = w.mem
	w.append(t, key(1), 100)
	w.waitAll(t)
	w.crash(t, 0, 2)
	if w.l.Group(key(1)).LastIndex() != 2 {
		t.Fatal("the entry after the torn one is lost")
	}
	_ = w.l.Close()
}

// writeBehind writes the first bytes of the record of an entry behind the end of the log, unsynced, as a process does
// that is killed after its write.
func (w *world) writeBehind(t *testing.T, e Entry, limit int) {
	t.Helper()
	records, _, err := w.l.Group(key(1)).prepare([]Entry{e})
	if err != nil {
		t.Fatal(err)
	}
	records[0].header.position = w.l.End()
	records[0].seg = w.l.current
	c := &committer{l: w.l}
	c.gather([]*record{&records[0]}, w.l.Durable(), false)
	var b []byte
	for _, v := range c.vectors {
		b = append(b, v...)
	}
	if _, err := w.l.current.file.WriteAt(b[:min(limit, len(b))], int64(w.l.End().Offset())); err != nil {
		t.Fatal(err)
	}
}

// TestKilledThenCut: the process was killed between a write and its sync. The next start finds the record, and takes
// it for durable; then the power goes. It guards the sync in syncFound.
func TestKilledThenCut(t *testing.T) {
	w := newWorld(1)
	w.cfg.FS = w.mem
	w.l = openLog(t, w.config(w.mem))
	w.append(t, key(1), 5000)
	w.waitAll(t)
	e := testEntry(2, 1, 100)
	w.writeBehind(t, e, 1<<20)
	again := openLog(t, w.config(w.mem)) // the killed process's log is not closed
	if again.Group(key(1)).LastIndex() != 2 {
		t.Fatal("the record is not there")
	}
	after := openLog(t, w.config(w.mem.CrashClone(vfs.CrashCloneCfg{})))
	if after.Group(key(1)).LastIndex() != 2 {
		t.Fatal("what the log took for durable was not")
	}
}

// FuzzRecovery overwrites bytes of a log. It opens or refuses to; an entry that it returns is the one that was
// written, and a replica that has lost entries is reported.
func FuzzRecovery(f *testing.F) {
	fs := vfs.FS(vfs.NewMem())
	at := fill(f, fs)
	files := make(map[string][]byte)
	names, err := fs.List("log")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		b, err := fs.(*vfs.MemFS).UnsafeGetFileDataBuffer("log/" + name)
		if err != nil {
			f.Fatal(err)
		}
		files[name] = bytes.Clone(b)
	}
	whole := files[segmentName(1)]
	f.Add(uint32(0), []byte("SLOG"))
	f.Add(at[key(2)][4].Offset(), bytes.Clone(whole[at[key(1)][3].Offset():][:128]))
	f.Add(at[key(2)][4].Offset()+8, []byte{0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, offset uint32, patch []byte) {
		offset %= 64 << 10
		patch = patch[:min(len(patch), 64<<10-int(offset))]
		fs := vfs.NewMem()
		if err := fs.MkdirAll("log", 0o755); err != nil {
			t.Fatal(err)
		}
		for name, b := range files {
			if name == segmentName(1) {
				b = bytes.Clone(b)
				copy(b[offset:], patch)
			}
			file, err := fs.Create("log/"+name, writeCategory)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.Write(bytes.Clone(b)); err != nil {
				t.Fatal(err)
			}
			_ = file.Close()
		}
		l, err := Open(testConfig(fs, threeGroups()...))
		if err != nil {
			return
		}
		defer l.Close()
		hurt := damagedGroups(l)
		for n := 1; n <= 3; n++ {
			g := l.Group(key(n))
			for i := uint64(1); i <= g.LastIndex(); i++ {
				checkEntry(t, g, testEntry(i, 1, 3000))
			}
			if g.LastIndex() != 10 && !slices.Contains(hurt, g.key.Group) {
				t.Fatalf("group %d has %d entries and is not damaged", n, g.LastIndex())
			}
		}
	})
}
