package segment

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"path"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/aligned"
)

var testStore = storage.StoreID{1, 2, 3}

func testConfig(fs vfs.FS, groups ...GroupStart) Config {
	return Config{FS: fs, Dir: "log", Store: testStore, SegmentBytes: 64 << 10, FreeSegments: 2, Groups: groups}
}

func openLog(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		if used, free := l.walkSpaceLocked(); l.failure == nil && (used != l.usedBytes || free != l.freeBytes) {
			t.Errorf("%d bytes are said to be used and %d free, they are %d and %d", l.usedBytes, l.freeBytes, used, free)
		}
	})
	return l
}

func key(n int) GroupKey { return GroupKey{Group: storage.GroupID(n), Incarnation: 1} }

func testEntry(index, term uint64, size int) Entry {
	seed := []byte(fmt.Sprintf("<%d.%d>", index, term))
	return Entry{Index: index, Term: term, Type: 1, AppendedAt: int64(index), Extensions: []byte("ext"),
		Data: bytes.Repeat(seed, size/len(seed)+1)[:size]}
}

// withBlocks gives the entry the sums of the whole blocks that its data ends with, and moves it to where they begin at a page.
func withBlocks(e *Entry) {
	n := len(e.Data) / storage.BlockSize * storage.BlockSize
	data := aligned.Before(len(e.Data)-n, n)
	copy(data, e.Data)
	e.Data, e.BlockSums = data, nil
	for b := data[len(data)-n:]; len(b) > 0; b = b[storage.BlockSize:] {
		e.BlockSums = binary.LittleEndian.AppendUint32(e.BlockSums, checksum(b[:storage.BlockSize]))
	}
}

func mustAppend(t tb, g *GroupLog, entries ...Entry) Position {
	t.Helper()
	end, err := g.Append(entries)
	if err != nil {
		t.Fatal(err)
	}
	return end
}

func mustWait(t tb, l *Log, p Position) {
	t.Helper()
	if err := l.Wait(context.Background(), p); err != nil {
		t.Fatal(err)
	}
}

// checkAgain wants all entries of the first group to be there, now and after the log was opened again.
func checkAgain(t *testing.T, cfg Config, l *Log, want []Entry) {
	t.Helper()
	mustWait(t, l, l.End())
	for range 2 {
		for _, e := range want {
			checkEntry(t, l.Group(key(1)), e)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, cfg)
	}
}

func checkEntry(t tb, g *GroupLog, want Entry) {
	t.Helper()
	got, err := g.Get(want.Index)
	if err != nil {
		t.Fatalf("entry %d: %v", want.Index, err)
	}
	if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type || got.AppendedAt != want.AppendedAt ||
		!bytes.Equal(got.Extensions, want.Extensions) || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("entry %d differs: got term %d, %d bytes; want term %d, %d bytes", want.Index, got.Term, len(got.Data),
			want.Term, len(want.Data))
	}
}

func TestAppendReopen(t *testing.T) {
	fs := vfs.NewMem()
	l := openLog(t, testConfig(fs))
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var end Position
	for i := uint64(1); i <= 100; i++ {
		end = mustAppend(t, g, testEntry(i, 1, 4096))
	}
	mustWait(t, l, end)
	for i := uint64(1); i <= 100; i++ {
		checkEntry(t, g, testEntry(i, 1, 4096))
	}
	if err := g.TruncateSuffix(91); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, g, testEntry(91, 2, 100))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l = openLog(t, testConfig(fs, GroupStart{Key: key(1)}))
		if d := l.Damaged(); len(d) > 0 {
			t.Fatal(d)
		}
		g = l.Group(key(1))
		if first, last := g.FirstIndex(), g.LastIndex(); first != 1 || last != 91 {
			t.Fatalf("log has %d to %d", first, last)
		}
		for i := uint64(1); i <= 90; i++ {
			checkEntry(t, g, testEntry(i, 1, 4096))
			want := testEntry(i, 1, 4096)
			_, at, n, _, _ := g.Location(i)
			buf := make([]byte, n)
			if err := l.ReadAt(at, buf); err != nil || !bytes.Equal(buf, want.Data) {
				t.Fatalf("ReadAt %d: %v", i, err)
			}
		}
		checkEntry(t, g, testEntry(91, 2, 100))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOpenReadsWhatIsNeeded: the segments before all that a group needs, which may be very many, are neither opened nor read at a start, and
// what tables refer to there can be read all the same. So a start does not grow with the data.
func TestOpenReadsWhatIsNeeded(t *testing.T) {
	for _, checkpointed := range []bool{true, false} {
		mem := vfs.NewMem()
		l := openLog(t, testConfig(mem))
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := uint64(1); i <= 60; i++ {
			mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 9000)))
		}
		_, first, _, _, ok := g.Location(1)
		if !ok {
			t.Fatal("no place")
		}
		start := GroupStart{Key: key(1)}
		if checkpointed {
			start = GroupStart{Key: key(1), AppliedIndex: 59, AppliedTerm: 1, From: g.NextNeeded(59)}
			l.DurableCheckpoint(key(1), 59, 1, start.From)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		// Those before the one with the last entry; what comes after it is made ready beside the test.
		need := g.NextNeeded(59).Segment()
		opened := map[SegmentNo]bool{}
		var mu sync.Mutex
		cfg := testConfig(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if no, ok := parseSegmentName(path.Base(op.Path)); ok && no < need && op.Kind == errorfs.OpOpen {
				mu.Lock()
				defer mu.Unlock()
				opened[no] = true
			}
			return nil
		})))
		cfg.Groups = []GroupStart{start}
		l = openLog(t, cfg)
		mu.Lock()
		n := len(opened)
		mu.Unlock()
		if need < 8 || checkpointed && n > 0 || !checkpointed && n < int(need)-1 {
			t.Errorf("checkpointed %v: %d segments before %s were opened", checkpointed, n, need)
		}
		want := testEntry(1, 1, 9000)
		got := make([]byte, len(want.Data))
		if err := l.ReadAt(first, got); err != nil || !bytes.Equal(got, want.Data) {
			t.Errorf("checkpointed %v: the first entry is not read: %v", checkpointed, err)
		}
	}
}
