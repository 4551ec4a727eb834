package segment

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDirectZeroes fills a file that holds something else around the page cache, and looks at every byte of it.
func TestDirectZeroes(t *testing.T) {
	f := realFile(t)
	old := bytes.Repeat([]byte{0xee}, 4*fillBytes)
	if _, err := f.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	var s dataSync
	defer s.close()
	z := directZeroes(&s, f)
	if z == nil {
		t.Fatal("direct writes are not possible on this file system")
	}
	defer z.close()
	if err := z.writeAt(fillBytes, fillBytes); err != nil {
		t.Fatal(err)
	}
	if err := z.writeAt(pageBytes, 3*fillBytes); err != nil {
		t.Fatal(err)
	}
	if err := s.of(f); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(old)
	clear(want[fillBytes : 2*fillBytes])
	clear(want[3*fillBytes : 3*fillBytes+pageBytes])
	got, err := io.ReadAll(io.NewSectionReader(f, 0, int64(len(old))))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the file is not what was written (%v)", err)
	}
}

// TestPreparedOnDisk: a segment made ahead of time on a real file system has its whole length, all of it allocated and
// zero behind its header.
func TestPreparedOnDisk(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, Config{FS: vfs.Default, Dir: dir, Store: testStore, SegmentBytes: 4 << 20, FreeSegments: 1})
	path := l.path(segmentName(2)) // the first is made by Open
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		if _, err := os.Stat(path); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != 4<<20 {
		t.Fatalf("the segment has %d bytes", len(data))
	}
	if rest := bytes.Trim(data[pageBytes:], "\x00"); len(rest) > 0 {
		t.Fatalf("%d bytes behind the header are not zero", len(rest))
	}
}
