package segment

import (
	"bytes"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

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
