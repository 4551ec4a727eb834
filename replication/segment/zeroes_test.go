package segment

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
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

// TestZeroesHoldNobodyUp: to start a write may take as long as the disk does (no room in its queue, or in the journal),
// and nothing else of the process may wait for that: here the garbage collector, which has to stop every goroutine for a
// moment. A pipe that is full takes the part of the disk. Guards dataSync.submit: with a system call that the runtime does
// not hear of (tried), it sends the thread signals to make it stop. They interrupt the write to the pipe; a disk would not
// even notice, and the process stand still until it answers.
func TestZeroesHoldNobodyUp(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r := os.NewFile(uintptr(fds[0]), "pipe")
	defer func() { _ = unix.Close(fds[1]) }()
	memory, err := unix.Mmap(-1, 0, fillBytes, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	var s dataSync
	defer s.close()
	if !s.possible(pipeFile{fd: uintptr(fds[1])}) {
		t.Fatal("the kernel has no AIO")
	}
	z := &zeroes{aio: &s, fd: fds[1], memory: memory}
	written := make(chan error, 1)
	go func() { written <- z.writeAt(fillBytes, 0) }() // far more than a pipe holds
	for full := 0; full < 10; runtime.GC() {
		if n, err := unix.IoctlGetInt(fds[0], unix.TIOCINQ); err != nil {
			t.Fatal(err)
		} else if n > 0 { // the writer is in the kernel
			full++
		}
	}
	emptied := make(chan struct{})
	go func() {
		defer close(emptied)
		_, _ = io.CopyN(io.Discard, r, fillBytes) // an error is the writer's to have
	}()
	defer func() {
		_ = r.Close()
		<-emptied
	}()
	if err := <-written; err != nil {
		t.Fatal(err)
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
