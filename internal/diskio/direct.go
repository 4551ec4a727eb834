package diskio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// pageBytes is what the places of direct writes are multiples of, in memory and in the file.
const pageBytes = 4096

// directFile is a second descriptor of the file that was written last, for direct I/O.
type directFile struct {
	of      vfs.File // nil: none
	fd      int      // -1: direct I/O is not possible there
	refused bool     // a file system took the descriptor and not the writes
	vectors []unix.Iovec
	flags   uint32 // RWF_ flags of the writes
}

// errNotDirect says that nothing was written, and that there is another way.
var errNotDirect = errors.New("direct I/O is not possible")

// open makes d the file's, and reports whether it can be written directly.
func (d *directFile) open(f vfs.File) bool {
	if d.refused {
		return false
	}
	if d.of != f {
		d.close()
		d.of, d.fd = f, openDirect(f)
	}
	return d.fd >= 0
}

// writes reports whether the file is written directly.
func (d *directFile) writes(f vfs.File) bool { return !d.refused && d.of == f && d.fd >= 0 }

func (d *directFile) close() {
	if d.of != nil && d.fd >= 0 {
		_ = unix.Close(d.fd) // what was written is synced by way of the file
	}
	d.of = nil
}

// openDirect returns a descriptor for direct writes of whole pages to the file, from whole pages of memory; -1 where that is not
// possible, or the kernel does not say what it wants: it does since Linux 6.1.
func openDirect(f vfs.File) int {
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	var stat unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stat); err != nil || stat.Mask&unix.STATX_DIOALIGN == 0 ||
		stat.Dio_mem_align == 0 || pageBytes%stat.Dio_mem_align != 0 || stat.Dio_offset_align == 0 || pageBytes%stat.Dio_offset_align != 0 {
		return -1
	}
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// pages reports whether vectors are whole pages of memory, for whole pages of a file.
func pages(vectors [][]byte, offset int64) bool {
	if offset%pageBytes != 0 {
		return false
	}
	for _, v := range vectors {
		if len(v)%pageBytes != 0 || uintptr(unsafe.Pointer(unsafe.SliceData(v)))%pageBytes != 0 {
			return false
		}
	}
	return true
}

// writeDirect writes whole pages around the page cache. It is not done if they are to be written in another way. A file without a
// descriptor, as in tests, gets them in one call, as the disk would.
func (w *Writer) writeDirect(f vfs.File, vectors [][]byte, offset int64) (done bool, err error) {
	if f.Fd() == vfs.InvalidFd {
		b := bytes.Join(vectors, nil)
		w.DirectBytes += int64(len(b))
		_, err := f.WriteAt(b, offset)
		return true, err
	}
	if !w.direct.open(f) {
		return false, nil
	}
	n, err := w.direct.writeAll(w.AIO, vectors, offset)
	w.DirectBytes += n
	runtime.KeepAlive(f)
	if errors.Is(err, errNotDirect) {
		w.direct.refused = true
		return false, nil // the same bytes go to the same places once more
	}
	return true, err
}

// Direct reports whether whole pages can be written to the file around the page cache.
func (w *Writer) Direct(f vfs.File) bool {
	return w.AIO != nil && (f.Fd() == vfs.InvalidFd || w.direct.open(f))
}

// WriteDurable writes whole pages around the page cache, in one go with their way to the disk (pwritev2(2), RWF_DSYNC): they are
// durable when it returns. It is not done if they are to be written, and synced, in another way. After an error it may be repeated:
// all of it goes to the disk once more, unlike after a sync, which takes what it could not write for written.
func (w *Writer) WriteDurable(f vfs.File, vectors [][]byte, offset int64) (done bool, err error) {
	if w.AIO == nil || !pages(vectors, offset) {
		return false, nil
	}
	w.direct.flags = unix.RWF_DSYNC
	done, err = w.writeDirect(f, vectors, offset)
	w.direct.flags = 0
	if done && err == nil && f.Fd() == vfs.InvalidFd {
		err = Synced(f.SyncData())
	}
	return done, err
}

// writeAll writes the vectors, and returns how much it has written.
func (d *directFile) writeAll(aio *Syncer, vectors [][]byte, offset int64) (written int64, err error) {
	for len(vectors) > 0 {
		some := vectors[:min(len(vectors), maxVectors)]
		vectors = vectors[len(some):]
		d.vectors = d.vectors[:0]
		for _, v := range some {
			d.vectors = append(d.vectors, unix.Iovec{Base: unsafe.SliceData(v)})
			d.vectors[len(d.vectors)-1].SetLen(len(v))
		}
		n, err := d.writeSome(aio, offset)
		clear(d.vectors)
		runtime.KeepAlive(some)
		offset += n
		if written += n; err != nil {
			return written, err
		}
	}
	return written, nil
}

// writeSome writes d.vectors. After a short write it goes on at the last whole page, so that all it writes is whole pages.
func (d *directFile) writeSome(aio *Syncer, offset int64) (written int64, err error) {
	for rest := d.vectors; len(rest) > 0; {
		n, err := aio.writeDirect(d.fd, rest, offset+written, d.flags)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP),
			errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // the last two from a filter of system calls
			return written, fmt.Errorf("%w: %w", errNotDirect, err)
		case err != nil:
			return written, err
		}
		if n &^= pageBytes - 1; n <= 0 {
			return written, io.ErrShortWrite
		}
		written += n
		for n > 0 && n >= int64(rest[0].Len) {
			n -= int64(rest[0].Len)
			rest = rest[1:]
		}
		if n > 0 {
			rest[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(rest[0].Base), n))
			rest[0].SetLen(int(rest[0].Len) - int(n))
		}
	}
	return written, nil
}

// writeDirect hands one write to the kernel, and waits for its end; without AIO it blocks a thread.
func (s *Syncer) writeDirect(fd int, vectors []unix.Iovec, offset int64, flags uint32) (int64, error) {
	if s.ready() {
		err := s.submit(&aioControl{opcode: aioWriteV, rwFlags: flags, fd: uint32(fd), offset: offset, bytes: uint64(len(vectors)),
			buffer: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(vectors))))})
		if err == nil {
			n, err := s.wait()
			runtime.KeepAlive(vectors)
			return n, err
		}
	}
	// The high half of the offset is 0 on every machine: a segment is at most 1 GiB.
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(vectors))), uintptr(len(vectors)),
		uintptr(offset), 0, uintptr(flags))
	switch {
	case errno == unix.EINTR:
		return s.writeDirect(fd, vectors, offset, flags)
	case errno != 0:
		return 0, errno
	}
	return int64(n), nil
}
