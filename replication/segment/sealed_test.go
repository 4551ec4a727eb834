package segment

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
)

// TestReadSealed: a sealed segment's entries and data are told in order, with where their data lies; what is damaged is left out.
func TestReadSealed(t *testing.T) {
	fs := vfs.NewMem()
	cfg := testConfig(fs)
	cfg.SegmentBytes, cfg.Aligned, cfg.alignedBytes = 1<<20, true, storage.BlockSize // more than one window
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ReadSealed(1, nil); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("an open segment: %v", err)
	}
	type seen struct {
		at    Position
		bytes int
		head  []byte
		h     DataHeader
	}
	var want []seen
	for i := uint64(1); l.End().Segment() == 1; i++ {
		e := testEntry(i, 1, int(i*997%9000))
		if i%4 != 0 { // records of both versions
			withBlocks(&e)
			e.Cold = true
		}
		mustWait(t, l, mustAppend(t, g, e))
		_, at, n, _, _ := g.Location(i)
		want = append(want, seen{at, n, e.Data[:min(n, maxHeadBytes)], DataHeader{}})
		h := DataHeader{Group: 7, Volume: storage.VolumeID(i), Extent: 3, Epoch: 9, FirstBlock: uint16(i)}
		data, end, err := l.AppendData(h, bytes.Repeat([]byte{byte(i)}, int(i%3+1)*storage.BlockSize))
		if err != nil {
			t.Fatal(err)
		}
		mustWait(t, l, end)
		want = append(want, seen{data, int(i%3+1) * storage.BlockSize, nil, h})
	}
	for want[len(want)-1].at.Segment() != 1 {
		want = want[:len(want)-1]
	}
	check := func(l *Log, want []seen) {
		t.Helper()
		i := 0
		err := l.ReadSealed(1, func(r SealedRecord) error {
			w := want[i]
			if r.Data != w.at || r.Bytes != w.bytes || (r.Head == nil) != (w.head == nil) || !bytes.Equal(r.Head, w.head) || r.Header != w.h {
				t.Fatalf("record %d: %d bytes at %s of %+v, want %d at %s of %+v; the same head: %v", i, r.Bytes, r.Data, r.Header, w.bytes, w.at, w.h, bytes.Equal(r.Head, w.head))
			}
			i++
			return nil
		})
		if err != nil || i != len(want) {
			t.Errorf("%d records, want %d; error %v", i, len(want), err)
		}
	}
	check(l, want)
	stop := errors.New("enough")
	if err := l.ReadSealed(1, func(SealedRecord) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("fn's error: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, fs, g.entries[2].at) // the header of an entry
	cfg.Groups = []GroupStart{{Key: key(1), From: l.End()}}
	l = openLog(t, cfg)
	check(l, append(append([]seen{}, want[:4]...), want[5:]...))
	if err := l.ReadSealed(1<<30, nil); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("no segment: %v", err)
	}
}
