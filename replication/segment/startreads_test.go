package segment

import (
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// readCounter counts the bytes that are read of the files of a file system.
type readCounter struct {
	vfs.FS
	bytes atomic.Int64
}

func (c *readCounter) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.Open(name, opts...)
	return countedFile{f, c}, err
}

func (c *readCounter) OpenReadWrite(name string, cat vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.OpenReadWrite(name, cat, opts...)
	return countedFile{f, c}, err
}

type countedFile struct {
	vfs.File
	c *readCounter
}

func (f countedFile) ReadAt(b []byte, at int64) (int, error) {
	n, err := f.File.ReadAt(b, at)
	f.c.bytes.Add(int64(n))
	return n, err
}

// TestOpenReadsTheLogOnce: of a log that is longer than the window that is read at once, each byte is read once, and beyond it the rest
// of its last segment and one free segment. So what a start reads is bounded by the log behind the checkpoints, and two segments.
// Tried: with windows that begin where the record begins that the last one held a part of, it is half as much again.
func TestOpenReadsTheLogOnce(t *testing.T) {
	for _, size := range []int{4 << 10, 1 << 20} {
		const segmentBytes = 8 << 20
		mem := vfs.NewMem()
		cfg := testConfig(mem)
		cfg.SegmentBytes, cfg.PrewriteBelowBytes = segmentBytes, -1 // to fill them takes files in memory long
		l := openLog(t, cfg)
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		entries := uint64(20 << 20 / size)
		half := entries / 2
		var last Position
		for i := uint64(1); i <= entries; i++ {
			last = mustAppend(t, g, testEntry(i, 1, size))
		}
		mustWait(t, l, last)
		start := GroupStart{Key: key(1), AppliedIndex: half, AppliedTerm: 1, From: g.NextNeeded(half)}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		end, segments := l.End(), int64(0)
		for no := start.From.Segment(); no <= end.Segment(); no++ {
			segments++
		}
		behind := (segments-1)*segmentBytes + int64(end.Offset()) - int64(start.From.Offset())

		counter := &readCounter{FS: mem}
		cfg.FS, cfg.Groups = counter, []GroupStart{start}
		l = openLog(t, cfg)
		rest := int64(segmentBytes) - int64(end.Offset())
		read := counter.bytes.Load()
		// Beside these there are a few headers, and the file that is read last has no window behind its end.
		if limit := behind + rest + segmentBytes + 64<<10; read < behind || read > limit {
			t.Errorf("entries of %d bytes: %d bytes were read of a log of %d; want at most %d", size, read, behind, limit)
		}
		g = l.Group(key(1))
		if g.LastIndex() != entries || len(l.Damaged()) > 0 {
			t.Errorf("%d entries of %d; damaged: %v", g.LastIndex(), entries, l.Damaged())
		}
		for _, i := range []uint64{half + 1, entries} {
			checkEntry(t, g, testEntry(i, 1, size))
		}
	}
}
