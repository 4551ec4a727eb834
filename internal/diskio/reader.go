package diskio

import (
	"errors"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Reader reads files so that nothing of Go waits for the disk. What the page cache has is copied by one
// system call that never blocks (preadv2(2) with RWF_NOWAIT); the rest is read through an io_uring.
//
// A goroutine in pread(2) that waits for the disk holds a processor of Go until the runtime's monitor takes it away, two
// milliseconds later or more: on a node with one processor cold reads went one after the other, and writes waited with
// them.
//
// Where the kernel or its policy has no io_uring (containers are often refused it) what the page cache does not have is
// read by pread, blockingReads at a time. So is everything where the file system knows no RWF_NOWAIT. Files without a
// descriptor read in their own way.
//
// All methods may be called concurrently, but Close only when no read runs any more.
type Reader struct {
	log *slog.Logger

	setUp sync.Once
	ring  *uring // nil after setUp: refused

	plain    atomic.Bool   // the file system, or the kernel, knows no RWF_NOWAIT
	blocking chan struct{} // holds one for each pread

	waits outstanding   // what waits for the disk
	cold  atomic.Uint64 // reads that the page cache could not answer
}

const (
	// blockingReads is how many reads may block a thread each.
	blockingReads = 32
	// unseenBytes is up to how much is copied from the page cache without telling Go's scheduler of the system call. It
	// saves a third of the time to read a page. Nothing can stop the goroutine meanwhile, for some ten microseconds.
	unseenBytes = 128 << 10
)

// NewReader returns a reader that tells log what an operator can do for it.
func NewReader(log *slog.Logger) *Reader {
	return &Reader{log: log, blocking: make(chan struct{}, blockingReads)}
}

// ReadAt fills buf from the offset of the file. The file must not be closed meanwhile. Like io.ReaderAt it returns an
// error whenever it read less than buf, io.EOF at the end of the file, and errors are those of pread. Offsets are below
// 2^31.
func (d *Reader) ReadAt(f vfs.File, buf []byte, offset int64) (int, error) {
	fd := f.Fd()
	if fd == vfs.InvalidFd {
		defer d.waits.end(d.waits.begin())
		return f.ReadAt(buf, offset)
	}
	defer runtime.KeepAlive(f)
	if len(buf) == 0 || d.plain.Load() {
		return d.block(f, buf, offset)
	}
	n, errno := readCached(fd, buf, offset)
	switch errno {
	case 0:
		if n == len(buf) {
			return n, nil
		}
	case unix.EAGAIN:
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EPERM:
		d.plain.Store(true)
		return d.block(f, buf, offset)
	default:
		return d.block(f, buf, offset)
	}
	// A short count does not mean the end of the file: kernels 5.9 and 5.10 return 0 for what is not cached.
	d.cold.Add(1)
	part, err := d.fromDisk(f, fd, buf[n:], offset+int64(n))
	return n + part, err
}

// fromDisk fills buf by way of the ring, if there is one.
func (d *Reader) fromDisk(f vfs.File, fd uintptr, buf []byte, offset int64) (n int, err error) {
	defer d.waits.end(d.waits.begin())
	ring := d.uring()
	for ring != nil && n < len(buf) {
		part, err := ring.read(fd, buf[n:], offset+int64(n))
		switch {
		case errors.Is(err, errNotRead):
			ring = nil
		case err != nil:
			return n, err
		case part == 0:
			return n, io.EOF
		}
		n += part
	}
	if n == len(buf) {
		return n, nil
	}
	part, err := d.blockUncounted(f, buf[n:], offset+int64(n))
	return n + part, err
}

// readCached reads what the page cache has from the offset on, up to the first page that it does not have.
func readCached(fd uintptr, buf []byte, offset int64) (int, unix.Errno) {
	vector := unix.Iovec{Base: unsafe.SliceData(buf)}
	vector.SetLen(len(buf))
	for {
		var (
			n     uintptr
			errno unix.Errno
		)
		// The high half of the offset is 0 on every machine: see ReadAt.
		if len(buf) <= unseenBytes {
			n, _, errno = unix.RawSyscall6(unix.SYS_PREADV2, fd, uintptr(unsafe.Pointer(&vector)), 1, uintptr(offset), 0,
				unix.RWF_NOWAIT)
		} else {
			n, _, errno = unix.Syscall6(unix.SYS_PREADV2, fd, uintptr(unsafe.Pointer(&vector)), 1, uintptr(offset), 0,
				unix.RWF_NOWAIT)
		}
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

// block reads by pread, in its turn.
func (d *Reader) block(f vfs.File, buf []byte, offset int64) (int, error) {
	defer d.waits.end(d.waits.begin())
	return d.blockUncounted(f, buf, offset)
}

func (d *Reader) blockUncounted(f vfs.File, buf []byte, offset int64) (int, error) {
	d.blocking <- struct{}{}
	defer func() { <-d.blocking }()
	return f.ReadAt(buf, offset)
}

// Block has every read block a thread from now on: nothing else of the process waits for it.
func (d *Reader) Block() { d.plain.Store(true) }

// Wait runs what waits for the disk beside reads, and counts it among them.
func (d *Reader) Wait(op func() error) error {
	defer d.waits.end(d.waits.begin())
	return op()
}

// Stalled returns since when reads wait for the disk and it has answered none; ok is false if none waits.
func (d *Reader) Stalled() (since time.Time, ok bool) { return d.waits.stalled() }

// Cold returns how many reads the page cache could not answer.
func (d *Reader) Cold() uint64 { return d.cold.Load() }

// uring returns the ring, or nil.
func (d *Reader) uring() *uring {
	d.setUp.Do(func() {
		ring, err := newURing()
		if err != nil {
			d.log.Warn("reads that the page cache cannot answer block a thread each; allow the process io_uring", "error", err)
			return
		}
		d.ring = ring
	})
	return d.ring
}

// Close frees the ring. Reads are possible afterwards, but block.
func (d *Reader) Close() {
	d.setUp.Do(func() {})
	if d.ring != nil {
		d.ring.close()
	}
}
