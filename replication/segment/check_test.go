package segment

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	storage "github.com/storaged/storaged"
)

// TestData: blocks that belong to no log can be read at once and after a restart, and damage in them hurts no group.
func TestData(t *testing.T) {
	fs := vfs.NewMem()
	fill(t, fs)
	l := openLog(t, testConfig(fs, threeGroups()...))
	payload := bytes.Repeat([]byte{7}, 3*storage.BlockSize)
	h := DataHeader{Group: 2, Volume: 77, Extent: 5, Epoch: 9, FirstBlock: 1000}
	data, end, err := l.AppendData(h, payload)
	if err != nil {
		t.Fatal(err)
	}
	read := func(l *Log) {
		t.Helper()
		buf := make([]byte, storage.BlockSize)
		if err := l.ReadAt(data+2*storage.BlockSize, buf); err != nil || !bytes.Equal(buf, payload[:storage.BlockSize]) {
			t.Fatalf("ReadAt: %v", err)
		}
	}
	read(l)
	mustWait(t, l, end)
	read(l)
	if _, _, err := l.AppendData(h, nil); !errors.Is(err, storage.ErrInvalid) {
		t.Fatalf("no data: %v", err)
	}
	for first, payload := range map[uint16][]byte{1000: payload[1:], storage.BlocksPerExtent - 2: payload} { // part of a block; a block too many
		h.FirstBlock = first
		if _, _, err := l.AppendData(h, payload); !errors.Is(err, storage.ErrInvalid) {
			t.Fatalf("from block %d: %v", first, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, testConfig(fs, threeGroups()...))
	expectDamaged(t, l)
	read(l)
	_ = l.Close()
	flip(t, fs, data+1)
	l = openLog(t, testConfig(fs, threeGroups()...))
	expectDamaged(t, l)
	_ = l.Close()
}

// TestCheck: nothing is wrong with a whole log, nor with its torn tail; rot is told, once, in words.
func TestCheck(t *testing.T) {
	check := func(fs vfs.FS) (findings []string) {
		t.Helper()
		r, err := Check(fs, "log", testStore, func(_ Position, text string) { findings = append(findings, text) })
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return findings
	}
	fs := vfs.NewMem()
	at := fill(t, fs)
	if f := check(fs); len(f) > 0 {
		t.Fatalf("whole log: %q", f)
	}
	for _, c := range []struct {
		offset Position
		want   string
	}{{500, "the payload of entry 4 of group 2/1 fails its checksum"}, {5, "bytes are not readable as records"}} {
		flip(t, fs, at[key(2)][4]+c.offset)
		if f := check(fs); len(f) != 1 || !strings.Contains(f[0], c.want) {
			t.Fatalf("got %q, want %q", f, c.want)
		}
		flip(t, fs, at[key(2)][4]+c.offset)
	}
	// A file that was being recycled has its new name, and what it had before.
	recycled := vfs.NewMem()
	l := openLog(t, testConfig(recycled))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); l.End().Segment() < 4; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 3000)))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := recycled.Remove("log/" + segmentName(2)); err != nil {
		t.Fatal(err)
	}
	if err := recycled.Rename("log/"+segmentName(1), "log/"+segmentName(2)); err != nil {
		t.Fatal(err)
	}
	if f := check(recycled); len(f) != 1 || !strings.Contains(f[0], "no valid record from here") {
		t.Fatalf("recycling was cut short: %q", f)
	}
	if _, err := Check(fs, "log", storage.StoreID{8}, func(Position, string) {}); !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("other store: %v", err)
	}
	r, err := Check(fs, "log", testStore, func(Position, string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := testEntry(4, 1, 3000)
	buf := make([]byte, len(want.Data))
	if err := r.ReadAt(at[key(2)][4]+recordHeaderBytes+prefixBytes+3, buf); err != nil || !bytes.Equal(buf, want.Data) {
		t.Fatalf("ReadAt: %v", err)
	}
}

// TestCheckKnowsWhatIsSkipped: segments that were ready when the log's end was torn are no part of it afterwards, and no damage (without
// skipped, check says so of a sound log). A segment that the log went through is, as before.
func TestCheckKnowsWhatIsSkipped(t *testing.T) {
	w := newWorld(1)
	w.cfg.FS, w.cfg.FreeSegments = w.mem, 4
	w.l = openLog(t, w.config(w.mem))
	w.append(t, key(1), 5000)
	w.waitAll(t)
	awaitFree(t, w.l, 4)
	w.writeBehind(t, testEntry(2, 1, 9000), 4096)
	if err := w.l.current.file.Sync(); err != nil {
		t.Fatal(err)
	}
	w.cfg.FreeSegments = 1
	w.crash(t, 100, 1)
	w.cfg.FS = w.mem
	if end := w.l.End().Segment(); end != 6 {
		t.Fatalf("it goes on in segment %s", end)
	}
	for w.l.End().Segment() < 7 { // which takes two of the four
		w.append(t, key(1), 5000)
		w.waitAll(t)
	}
	if err := w.l.Close(); err != nil {
		t.Fatal(err)
	}
	found := func() (texts []string) {
		t.Helper()
		r, err := Check(w.mem, "log", testStore, func(_ Position, text string) { texts = append(texts, text) })
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		return texts
	}
	names, err := w.mem.List("log")
	if err != nil || !slices.ContainsFunc(names, func(n string) bool { return n > segmentName(1) && n < segmentName(6) }) {
		t.Fatalf("nothing is left of what was ready: %v, %v", names, err)
	}
	if f := found(); len(f) > 0 {
		t.Errorf("a sound log: %q", f)
	}
	f, err := w.mem.OpenReadWrite("log/"+segmentName(6), vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 20<<10), segmentHeaderBytes)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if f := found(); len(f) != 1 || !strings.Contains(f[0], "segment 6, byte 4096") {
		t.Errorf("a segment of it is gone: %q", f)
	}
}
