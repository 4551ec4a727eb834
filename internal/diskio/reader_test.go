package diskio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// diskFile makes a file of random bytes and returns it with its content.
func diskFile(t *testing.T, size int) (vfs.File, []byte) {
	t.Helper()
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(content)
	f := realFile(t)
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f, content
}

// forget makes the kernel forget what it has of the file, where the file system can.
func forget(t testing.TB, f vfs.File) {
	t.Helper()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// readers are the ways to read: as the machine allows, without io_uring, and without RWF_NOWAIT.
func readers(t *testing.T) map[string]*Reader {
	t.Helper()
	all := map[string]*Reader{}
	for _, name := range []string{"all", "without io_uring", "plain"} {
		d := NewReader(slog.New(slog.DiscardHandler))
		t.Cleanup(d.Close)
		all[name] = d
	}
	all["without io_uring"].setUp.Do(func() {})
	all["plain"].plain.Store(true)
	return all
}

// testRing returns a ring, or nil where the kernel or its policy has none.
func testRing(t *testing.T) *uring {
	t.Helper()
	u, err := newURing()
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		t.Logf("not tested, there is no io_uring here: %v", err)
		return nil
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(u.close)
	return u
}

// TestReader reads a file from the disk and from the page cache by more goroutines than the ring has places. It reads at any
// offset, across the end and behind it, and wants what pread returns.
func TestReader(t *testing.T) {
	f, content := diskFile(t, 3<<20+123)
	for name, d := range readers(t) {
		t.Run(name, func(t *testing.T) {
			forget(t, f)
			var work sync.WaitGroup
			for worker := range uint64(2 * uringReads) {
				work.Go(func() {
					rnd := rand.New(rand.NewPCG(4, worker))
					for range 20 {
						if err := readSome(d, f, content, rnd); err != nil {
							t.Error(err)
							return
						}
						if worker == 0 {
							forget(t, f)
						}
					}
				})
			}
			work.Wait()
			t.Logf("%d reads were not answered by the page cache", d.cold.Load())
		})
	}
}

// readSome reads somewhere in the file and compares.
func readSome(d *Reader, f vfs.File, content []byte, rnd *rand.Rand) error {
	offset, size := rnd.IntN(len(content)+100), rnd.IntN(1<<(4+rnd.IntN(16)))
	if rnd.IntN(4) == 0 {
		offset = len(content) - rnd.IntN(size+1)
	}
	want := content[min(offset, len(content)):min(offset+size, len(content))]
	buf := make([]byte, size)
	n, err := d.ReadAt(f, buf, int64(offset))
	if n != len(want) || !bytes.Equal(buf[:n], want) || err == nil != (n == size) || err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes at %d of %d: got %d, %v; equal: %t", size, offset, len(content), n, err,
			bytes.Equal(buf[:n], want[:min(n, len(want))]))
	}
	return nil
}

// TestReaderErrors: what the kernel refuses is refused as by pread.
func TestReaderErrors(t *testing.T) {
	f, _ := diskFile(t, page)
	for name, d := range readers(t) {
		o, err := os.OpenFile(f.(interface{ Name() string }).Name(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		w := osFile{File: f, os: o}
		if n, err := d.ReadAt(w, make([]byte, 16), 0); n != 0 || !errors.Is(err, unix.EBADF) {
			t.Errorf("%s: file open for writing: %d, %v, want EBADF", name, n, err)
		}
		_ = o.Close()
		if n, err := d.ReadAt(w, make([]byte, 16), 0); n != 0 || !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: closed file: %d, %v", name, n, err)
		}
	}
}

// osFile reads another file than it writes.
type osFile struct {
	vfs.File
	os *os.File
}

func (f osFile) Fd() uintptr { return f.os.Fd() }

func (f osFile) ReadAt(b []byte, at int64) (int, error) { return f.os.ReadAt(b, at) }

// TestURing reads by the ring alone, which must not look different where the page cache has everything.
func TestURing(t *testing.T) {
	u := testRing(t)
	if u == nil {
		return
	}
	f, content := diskFile(t, 1<<20)
	for offset := 0; offset < len(content); offset += 100_000 {
		if offset%200_000 == 0 {
			forget(t, f)
		}
		want := content[offset:min(offset+100_000, len(content))]
		buf := make([]byte, 100_000)
		n := 0
		for n < len(want) {
			part, err := u.read(f.Fd(), buf[n:], int64(offset+n))
			if err != nil || part == 0 {
				t.Fatalf("at %d: %d, %v", offset+n, part, err)
			}
			n += part
		}
		if !bytes.Equal(buf[:n], want) {
			t.Fatalf("at %d: other bytes than were written", offset)
		}
	}
	if n, err := u.read(f.Fd(), make([]byte, 10), 1<<20); n != 0 || err != nil {
		t.Fatalf("at the end: %d, %v", n, err)
	}
	if _, err := u.read(1<<20, make([]byte, 10), 0); !errors.Is(err, errNotRead) {
		t.Fatalf("no such descriptor: %v", err)
	}
}

// TestURingEIO: an error of the device comes back as such. The memory of a process at address 0 cannot be read.
func TestURingEIO(t *testing.T) {
	u := testRing(t)
	if u == nil {
		return
	}
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if _, err := u.read(memory.Fd(), make([]byte, 10), 0); !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v, want EIO", err)
	}
}

// TestURingWaits: a read does not return before the kernel is through with its buffer, and takes a place until then.
// Reads of an empty pipe last until it is written. More of them than there are places wait for a place.
func TestURingWaits(t *testing.T) {
	u := testRing(t)
	if u == nil {
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	fd := r.Fd() // makes it block
	var returned, sum atomic.Int64
	var work sync.WaitGroup
	const reads = uringReads + 10
	for range reads {
		work.Go(func() {
			buf := make([]byte, 1)
			n, err := u.read(fd, buf, -1)
			returned.Add(1)
			if n != 1 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			sum.Add(int64(buf[0]))
		})
	}
	awaitTrue(t, "all places are taken", func() bool { return len(u.free) == 0 })
	want := int64(0)
	for i := range reads {
		if n := returned.Load(); n > int64(i) {
			t.Fatalf("%d reads returned of a pipe that was written %d times", n, i)
		}
		want += int64(i % 200)
		if _, err := w.Write([]byte{byte(i % 200)}); err != nil {
			t.Fatal(err)
		}
	}
	work.Wait()
	if sum.Load() != want {
		t.Fatalf("the reads got %d in sum; %d was written", sum.Load(), want)
	}
}

func awaitTrue(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

// TestURingRefusesSubmission: what the kernel does not take is not left in the queue, where the next read would start
// it into memory that is somebody else's by then.
func TestURingRefusesSubmission(t *testing.T) {
	u := testRing(t)
	if u == nil {
		return
	}
	f, content := diskFile(t, page)
	buf := make([]byte, 100)
	fd := u.fd
	u.fd = -1
	_, err := u.read(f.Fd(), buf, 0)
	u.fd = fd
	if !errors.Is(err, errNotRead) {
		t.Fatalf("got %v", err)
	}
	for range uringReads { // by the place of the refused one, too
		got := make([]byte, 60)
		if n, err := u.read(f.Fd(), got, 50); n != len(got) || err != nil || !bytes.Equal(got, content[50:110]) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if !bytes.Equal(buf, make([]byte, len(buf))) {
		t.Fatal("the refused read was done after all")
	}
	if len(u.free) != uringReads {
		t.Fatalf("%d places are free", len(u.free))
	}
}

// TestReadsWhileThreadsEnd: the kernel gives up what a thread has submitted when the thread ends. Nothing is lost by it.
func TestReadsWhileThreadsEnd(t *testing.T) {
	f, content := diskFile(t, 1<<20)
	d := readers(t)["all"]
	var work sync.WaitGroup
	for worker := range uint64(64) {
		work.Go(func() {
			rnd := rand.New(rand.NewPCG(5, worker))
			for range 20 {
				forget(t, f)
				if err := readSome(d, f, content, rnd); err != nil {
					t.Error(err)
					return
				}
				work.Go(runtime.LockOSThread) // its thread ends with the goroutine
			}
		})
	}
	work.Wait()
}

// TestHotReadAllocatesNothing also sees whether the page cache is asked at all.
func TestHotReadAllocatesNothing(t *testing.T) {
	f, _ := diskFile(t, page)
	d := NewReader(slog.New(slog.DiscardHandler))
	defer d.Close()
	buf := make([]byte, page)
	allocations := testing.AllocsPerRun(100, func() {
		if n, err := d.ReadAt(f, buf, 0); n != len(buf) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	})
	if allocations > 0 {
		t.Fatalf("%g allocations", allocations)
	}
}
