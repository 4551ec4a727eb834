package diskio

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDirectZeroes fills a file that holds something else around the page cache, and looks at every byte of it.
func TestDirectZeroes(t *testing.T) {
	f := realFile(t)
	old := bytes.Repeat([]byte{0xee}, 4*ZeroBytes)
	if _, err := f.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	var s Syncer
	defer s.Close()
	z := DirectZeroes(&s, f)
	if z == nil {
		t.Fatal("direct writes are not possible on this file system")
	}
	defer z.Close()
	if err := z.WriteAt(ZeroBytes, ZeroBytes); err != nil {
		t.Fatal(err)
	}
	if err := z.WriteAt(page, 3*ZeroBytes); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncData(f); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(old)
	clear(want[ZeroBytes : 2*ZeroBytes])
	clear(want[3*ZeroBytes : 3*ZeroBytes+page])
	got, err := io.ReadAll(io.NewSectionReader(f, 0, int64(len(old))))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the file is not what was written (%v)", err)
	}
}

// TestZeroesHoldNobodyUp: to start a write may take as long as the disk does (no room in its queue, or in the journal),
// and nothing else of the process may wait for that: here the garbage collector, which has to stop every goroutine for a
// moment. A pipe that is full takes the part of the disk. Guards Syncer.submit: with a system call that the runtime does
// not hear of (tried), it sends the thread signals to make it stop. They interrupt the write to the pipe; a disk would not
// even notice, and the process stand still until it answers.
func TestZeroesHoldNobodyUp(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r := os.NewFile(uintptr(fds[0]), "pipe")
	defer func() { _ = unix.Close(fds[1]) }()
	memory, err := unix.Mmap(-1, 0, ZeroBytes, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	var s Syncer
	defer s.Close()
	if !s.Possible(pipeFile{fd: uintptr(fds[1])}) {
		t.Fatal("the kernel has no AIO")
	}
	z := &Zeroes{aio: &s, fd: fds[1], memory: memory}
	written := make(chan error, 1)
	go func() { written <- z.WriteAt(ZeroBytes, 0) }() // far more than a pipe holds
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
		_, _ = io.CopyN(io.Discard, r, ZeroBytes) // an error is the writer's to have
	}()
	defer func() {
		_ = r.Close()
		<-emptied
	}()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}
