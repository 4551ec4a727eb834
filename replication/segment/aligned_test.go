package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/aligned"
)

// TestBlocksBeginAtPages appends blocks at every offset of a page and of several sizes, with a data's head and extensions of several
// lengths. It finds each where Location says, on a page, in memory and on the disk, before and after the log is opened again.
func TestBlocksBeginAtPages(t *testing.T) {
	fs := vfs.NewMem()
	cfg := testConfig(fs, GroupStart{Key: key(1)})
	cfg.SegmentBytes, cfg.CacheBytes, cfg.Aligned, cfg.alignedBytes = 256<<10, 64<<10, true, storage.BlockSize
	cfg.IdleAfter = time.Hour // no closing record in between
	l := openLog(t, cfg)
	g := l.Group(key(1))
	var want []Entry
	add := func(e Entry) {
		e.Index = uint64(len(want) + 1)
		mustWait(t, l, mustAppend(t, g, e))
		want = append(want, e)
	}
	for n := range 4 * pageBytes / recordAlignBytes {
		// A small entry, with the extensions that testEntry gives, brings the log to the next place in a page.
		const least = recordHeaderBytes + prefixBytes + 3
		if gap := (n/4*recordAlignBytes - int(l.End().Offset())) & (pageBytes - 1); gap > 0 {
			if gap < least {
				gap += pageBytes
			}
			add(testEntry(0, 1, gap-least))
		}
		before := l.End()
		if at := int(before.Offset()) % pageBytes; at != n/4*recordAlignBytes {
			t.Fatalf("the log is at %d of a page, not at %d", at, n/4*recordAlignBytes)
		}
		e := testEntry(0, 1, n%7*97+[]int{1, 2, 3, 17}[n%4]*storage.BlockSize)
		e.Extensions, e.Cold = bytes.Repeat([]byte("x"), n%3*50), true
		withBlocks(&e)
		add(e)
		_, data, size, end, _ := g.Location(uint64(len(want)))
		blocks := len(e.BlockSums) / 4 * storage.BlockSize
		if at := int(data.Offset()) + size - blocks; at%pageBytes != 0 || end != l.End() || int(end.Offset()) != at+blocks {
			t.Fatalf("appended at %s: blocks at %d, %d bytes of them, end %s, of the log %s", before, at, blocks, end, l.End())
		}
		got := make([]byte, size)
		if err := l.ReadAt(data, got); err != nil || !bytes.Equal(got, e.Data) {
			t.Fatalf("appended at %s: not what was appended, %v", before, err)
		}
	}
	look := func() {
		t.Helper()
		for _, e := range want {
			checkEntry(t, g, e)
			_, data, size, _, _ := g.Location(e.Index)
			got := make([]byte, size)
			if err := l.ReadAt(data, got); err != nil || !bytes.Equal(got, e.Data) {
				t.Fatalf("entry %d: not what was appended, %v", e.Index, err)
			}
		}
	}
	look()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Check(fs, "log", testStore, func(_ Position, text string) { t.Error(text) })
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	l = openLog(t, cfg)
	g = l.Group(key(1))
	look()
}

// TestAlignedIsAllowed: the log writes records of version 2 only when it may, and only of blocks that lie on pages of memory, are
// many enough and fit.
func TestAlignedIsAllowed(t *testing.T) {
	cfg := testConfig(vfs.NewMem(), GroupStart{Key: key(1)})
	cfg.SegmentBytes = 256 << 10
	l := openLog(t, cfg)
	g := l.Group(key(1))
	index := uint64(0)
	padded := func(e Entry) bool {
		t.Helper()
		index++
		small := testEntry(index, 1, 100) // so that a record does not lie well by chance
		e.Index = index + 1
		index++
		mustWait(t, l, mustAppend(t, g, small, e))
		return g.entries[len(g.entries)-1].padding > 0
	}
	large := testEntry(0, 1, AlignedBytes+100)
	withBlocks(&large)
	large.Cold = true
	warm := large
	warm.Cold = false
	less := testEntry(0, 1, AlignedBytes-1)
	withBlocks(&less)
	less.Cold = true
	elsewhere := large
	elsewhere.Data = append(make([]byte, 0, len(large.Data)+pageBytes), large.Data...)
	if aligned.Is(elsewhere.Data[100:]) {
		t.Fatal("a copy that begins at a page has blocks on pages, too")
	}
	unsummed := large
	unsummed.BlockSums = nil
	if padded(large) {
		t.Error("before it was allowed")
	}
	l.Align()
	for what, c := range map[string]struct {
		e    Entry
		want bool
	}{"large": {large, true}, "small": {less, false}, "elsewhere in memory": {elsewhere, false}, "no blocks": {unsummed, false}, "to be read soon": {warm, false}} {
		if got := padded(c.e); got != c.want {
			t.Errorf("%s: padded %v", what, got)
		}
	}
	// The largest record fits in a segment only without padding.
	huge := testEntry(0, 1, (256<<10-segmentHeaderBytes-pageBytes)+pageBytes-2*recordHeaderBytes-prefixBytes-3)
	withBlocks(&huge)
	huge.Cold = true
	if padded(huge) {
		t.Error("a record with padding that does not fit in a segment")
	}
	checkEntry(t, g, func() Entry { huge.Index = index; return huge }())
}

// TestGather lays out random batches and looks at what is to be written and how: the records as they are, after what is known of the
// first page. Every page goes in one way only, and what goes around the page cache from whole pages of memory.
func TestGather(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 9))
	direct, wholes := 0, 0
	for round := range 300 {
		cfg := Config{SegmentBytes: 64 << 20, Aligned: true, Store: testStore}
		cfg.setDefaults()
		l := &Log{cfg: cfg, salt: headerSalt(testStore), current: &segmentFile{no: 1, capacity: 64 << 20}, groups: map[GroupKey]*GroupLog{}}
		l.offset = segmentHeaderBytes + uint32(rnd.IntN(128))*recordAlignBytes
		g := newGroupLog(l, GroupStart{Key: key(1)})
		var entries []Entry
		for i := range 1 + rnd.IntN(8) {
			e := testEntry(uint64(i+1), 1, []int{0, 100, 5000, coldBytes + rnd.IntN(3000), AlignedBytes, 300<<10 + rnd.IntN(1100)}[rnd.IntN(6)])
			e.Cold = rnd.IntN(2) == 0
			if rnd.IntN(3) > 0 {
				withBlocks(&e)
			}
			entries = append(entries, e)
		}
		records, _, err := g.prepare(entries)
		if err != nil {
			t.Fatal(err)
		}
		c := &committer{l: l}
		var batch []*record
		for i := range records {
			l.pushLocked(&records[i], 0)
			batch = append(batch, &records[i])
		}
		from, whole := int64(batch[0].header.position.Offset()), round%3 == 0
		for _, r := range batch {
			whole = whole && !r.direct
		}
		if whole || round%3 == 1 {
			c.tail, c.tailEnd = testEntry(1, 1, int(from%pageBytes)).Data, batch[0].header.position
			from -= from % pageBytes
		}
		for range 2 { // a batch that found no room is laid out again
			c.gather(batch, 0, whole)
		}
		image := bytes.Join(c.vectors, nil)
		if !bytes.HasPrefix(image, c.tail) {
			t.Fatalf("round %d: the page's head is not what it was", round)
		}
		if whole {
			wholes++
			if len(c.vectors) != 1 || len(image)%pageBytes != 0 || !aligned.Is(c.vectors[0]) {
				t.Fatalf("round %d: %d vectors, %d bytes are no whole pages", round, len(c.vectors), len(image))
			}
			c.spans = nil // they say nothing then
		}
		if end := from + int64(len(image)); end%pageBytes != 0 || end-int64(l.offset) >= pageBytes {
			t.Fatalf("round %d: it ends at %d, the log at %d", round, end, l.offset)
		}
		for _, r := range batch {
			b := image[int64(r.header.position.Offset())-from:]
			h, ok := decodeRecordHeader(b, l.salt, r.header.position)
			front, data, ok2 := h.parts(b[recordHeaderBytes:][:h.bodyBytes()])
			if !ok || !ok2 || !bytes.Equal(data, r.data[len(r.data)-len(data):]) || len(front)+len(data) != int(h.payload) ||
				checksum(append(bytes.Clone(front), data...)) != h.sum {
				t.Fatalf("round %d: a record is not there as it was appended: %+v", round, h)
			}
		}
		at, vectors := from, c.vectors
		for _, p := range c.spans {
			if p.From%pageBytes != 0 || p.To%pageBytes != 0 || p.From < at || p.To <= p.From {
				t.Fatalf("round %d: spans %+v", round, c.spans)
			}
			for at < p.To {
				v := vectors[0]
				vectors = vectors[1:]
				n := int64(len(v))
				if p.Direct && at >= p.From && (at+n > p.To || at%pageBytes != 0 || n%pageBytes != 0 || !aligned.Is(v)) {
					t.Fatalf("round %d: %d bytes at %d of %+v are no whole pages", round, n, at, p)
				}
				if p.Direct && at < p.From && at+n > p.From {
					t.Fatalf("round %d: %d bytes at %d reach into %+v", round, n, at, p)
				}
				if at+n > p.To { // a cold part may end within a vector
					vectors = append([][]byte{v[p.To-at:]}, vectors...)
					n = p.To - at
				}
				if at += n; p.Direct {
					direct++
				}
			}
		}
	}
	if wholes < 20 {
		t.Errorf("only %d batches are written as a whole", wholes)
	}
	if direct < 200 {
		t.Errorf("only %d vectors go around the page cache", direct)
	}
}

// TestPaddingIsInTheHeader: how much padding there is, the header's checksum covers; what is in it, nobody reads. Damage of what is
// before and after it is found, when the log is opened and when it is read.
func TestPaddingIsInTheHeader(t *testing.T) {
	for _, c := range []struct {
		what string
		at   func(*entry) Position
		hurt bool
	}{
		{"length of the padding", func(e *entry) Position { return e.at + 6 }, true},
		{"extensions", func(e *entry) Position { return e.at + recordHeaderBytes + prefixBytes }, true},
		{"their length", func(e *entry) Position { return e.at + recordHeaderBytes + 5 }, true},
		{"padding", func(e *entry) Position { return e.dataAt() - 1 }, false},
		{"head of the data", (*entry).dataAt, true},
		{"last block", func(e *entry) Position { return e.end() - 1 }, true},
	} {
		fs := vfs.NewMem()
		cfg := testConfig(fs, GroupStart{Key: key(1)})
		cfg.Aligned, cfg.alignedBytes, cfg.CacheBytes = true, storage.BlockSize, 1
		l := openLog(t, cfg)
		g := l.Group(key(1))
		e := testEntry(2, 1, 2*storage.BlockSize+100)
		withBlocks(&e)
		e.Cold = true
		mustWait(t, l, mustAppend(t, g, testEntry(1, 1, 100), e, testEntry(3, 1, 6000)))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, cfg)
		g = l.Group(key(1))
		flip(t, fs, c.at(&g.entries[1]))
		if _, err := g.Get(2); c.at(&g.entries[1]) >= g.entries[1].at+recordHeaderBytes && errors.Is(err, storage.ErrCorrupt) != c.hurt {
			t.Errorf("%s: read: %v", c.what, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, cfg)
		if got := len(l.Damaged()) > 0; got != c.hurt {
			t.Errorf("%s: damaged %v: %+v", c.what, got, l.Damaged())
		}
		_ = l.Close()
	}
}

// TestDirectEntries appends entries with blocks and without to a log in real files, and reads all of them from there, before and
// after it is opened again. What the log counts as written around the page cache are the pages of the large ones.
func TestDirectEntries(t *testing.T) {
	cfg := testConfig(vfs.Default, GroupStart{Key: key(1)})
	cfg.Dir, cfg.CacheBytes, cfg.SegmentBytes, cfg.Aligned = t.TempDir(), 1, 4<<20, true
	sizes := []int{AlignedBytes, 100, AlignedBytes + 137, 300 << 10, 5000, AlignedBytes - 1, 1<<20 + 1100, 1 << 20, 0, 255*storage.BlockSize + 5}
	var want []Entry
	var least float64
	l := openLog(t, cfg)
	g := l.Group(key(1))
	for n := uint64(1); n <= 90; {
		var batch []Entry
		for range 1 + n%4 {
			e := testEntry(n, 1, sizes[int(n)%len(sizes)])
			e.Cold = n%5 != 0
			if n%7 != 0 {
				withBlocks(&e)
				if blocks := len(e.BlockSums) / 4 * storage.BlockSize; e.Cold && blocks >= AlignedBytes {
					least += float64(blocks)
				}
			}
			batch = append(batch, e)
			n++
		}
		end := mustAppend(t, g, batch...)
		want = append(want, batch...)
		if n%3 != 0 { // else the next batch joins it
			mustWait(t, l, end)
		}
	}
	mustWait(t, l, l.End())
	if direct := testutil.ToFloat64(l.metrics.direct); direct != 0 && direct < least || direct > least*1.1 {
		t.Errorf("%v bytes went around the page cache, want %v or a little more", direct, least)
	} else if direct == 0 {
		t.Log("this file system has no direct I/O")
	}
	checkAgain(t, cfg, l, want)
}

// TestLaterRecordIsRefused: a log with a record of a version that this build does not know is not opened, nor checked.
func TestLaterRecordIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	cfg := testConfig(fs, GroupStart{Key: key(1)})
	l := openLog(t, cfg)
	mustWait(t, l, mustAppend(t, l.Group(key(1)), testEntry(1, 1, 100)))
	at := l.Group(key(1)).entries[0].at
	salt := l.salt
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := fs.OpenReadWrite("log/"+segmentName(at.Segment()), writeCategory)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, recordHeaderBytes)
	if _, err := f.ReadAt(b, int64(at.Offset())); err != nil {
		t.Fatal(err)
	}
	b[4] = paddedVersion + 1
	binary.LittleEndian.PutUint32(b[60:], headerSum(b, salt))
	if _, err := f.WriteAt(b, int64(at.Offset())); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := Open(cfg); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("opened: %v", err)
	}
	if _, err := Check(fs, "log", testStore, func(Position, string) {}); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("checked: %v", err)
	}
}
