package diskio

import (
	"fmt"
	"io"
	"syscall"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// ZeroBytes is the most that one Zeroes.WriteAt writes.
const ZeroBytes = 1 << 20

// Zeroes writes zeroes around the page cache (O_DIRECT, by Linux AIO), where file and file system allow it. Through the
// page cache a segment filled ahead of time is copied, and takes the memory of pages that someone may need; that was an
// eighth of the CPU of replicated 4 KiB writes.
//
// It belongs to the goroutine of its Syncer.
type Zeroes struct {
	aio    *Syncer
	fd     int
	memory []byte // ZeroBytes of them, aligned as direct I/O wants it
}

// DirectZeroes returns what writes zeroes to the file directly; nil if that cannot be done. Close ends it.
func DirectZeroes(aio *Syncer, f vfs.File) *Zeroes {
	if !aio.Possible(f) {
		return nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	memory, err := unix.Mmap(-1, 0, ZeroBytes, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return &Zeroes{aio: aio, fd: fd, memory: memory}
}

// WriteAt writes n zeroes, at most ZeroBytes; offset and n are multiples of a page. It fails with EINVAL where direct I/O
// is refused after all.
func (z *Zeroes) WriteAt(n, offset int64) error {
	for n > 0 {
		err := z.aio.submit(&aioControl{opcode: aioWrite, fd: uint32(z.fd), offset: offset, bytes: uint64(n),
			buffer: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(z.memory))))})
		if err != nil {
			return syscall.EINVAL // the caller has another way
		}
		written, err := z.aio.wait()
		if err != nil {
			return err
		}
		if written <= 0 {
			return io.ErrShortWrite
		}
		n, offset = n-written, offset+written
	}
	return nil
}

// Close lets the file go.
func (z *Zeroes) Close() {
	_ = unix.Munmap(z.memory)
	_ = unix.Close(z.fd)
}
