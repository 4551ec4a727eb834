package diskio

import (
	"bytes"
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// maxVectors is the kernel's limit (IOV_MAX) of buffers in one write.
const maxVectors = 1024

// Span is a part of a file, of whole pages.
type Span struct{ From, To int64 }

// Writer writes vectors to files, by reference. It belongs to one goroutine. The zero value is ready.
type Writer struct {
	part   [][]byte // what one system call writes of the vectors
	cached bool     // the file system refused a write past its cache once
}

// WriteAt writes the vectors at the offset of the file. What lies in the cold parts, which ascend, goes past the page
// cache if the file system can do that. It may change the elements of vectors.
func (w *Writer) WriteAt(f vfs.File, vectors [][]byte, offset int64, cold []Span) error {
	if f.Fd() == vfs.InvalidFd {
		_, err := f.WriteAt(bytes.Join(vectors, nil), offset)
		return err
	}
	fd, rest := int(f.Fd()), vectors
	for _, p := range cold {
		err := w.writePart(fd, &rest, offset, p.From-offset, unix.Pwritev)
		if err == nil {
			err = w.writePart(fd, &rest, p.From, p.To-p.From, w.writeCold)
		}
		if err != nil {
			return err
		}
		offset = p.To
	}
	return writeVectors(fd, rest, offset, unix.Pwritev)
}

// writeVectors writes all of vectors at the offset, by reference. It changes the slice.
func writeVectors(fd int, vectors [][]byte, offset int64, write vectorWriter) error {
	for len(vectors) > 0 {
		n, err := write(fd, vectors[:min(len(vectors), maxVectors)], offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			return io.ErrShortWrite
		}
		offset += int64(n)
		for n > 0 && n >= len(vectors[0]) {
			n -= len(vectors[0])
			vectors = vectors[1:]
		}
		if n > 0 {
			vectors[0] = vectors[0][n:]
		}
	}
	return nil
}

// writePart writes the next n bytes of rest, and takes them off.
func (w *Writer) writePart(fd int, rest *[][]byte, offset, n int64, write vectorWriter) error {
	w.part = w.part[:0]
	for n > 0 {
		v := (*rest)[0]
		if int64(len(v)) > n {
			(*rest)[0] = v[n:]
			v = v[:n]
		} else {
			*rest = (*rest)[1:]
		}
		w.part = append(w.part, v)
		n -= int64(len(v))
	}
	err := writeVectors(fd, w.part, offset, write)
	clear(w.part)
	return err
}

// writeCold writes past the page cache if the file system can: the larger ones since Linux 6.14. The pages are on their
// way to the disk when it returns, and leave the cache when they are there.
func (w *Writer) writeCold(fd int, vectors [][]byte, offset int64) (n int, err error) {
	if !w.cached {
		n, err = unix.Pwritev2(fd, vectors, offset, unix.RWF_DONTCACHE)
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			return n, err
		}
		w.cached = true
	}
	return unix.Pwritev(fd, vectors, offset)
}

// vectorWriter is unix.Pwritev or something like it.
type vectorWriter func(fd int, vectors [][]byte, offset int64) (n int, err error)

// Evict takes out of the page cache what a write left there of its cold parts, once the file is synced: all of it where
// the file system cannot write past its cache, and on ext4 what went into blocks that were in use before. It is advice; if
// the kernel does not take it, nothing is lost but memory.
func (w *Writer) Evict(f vfs.File, cold []Span) {
	if f.Fd() == vfs.InvalidFd {
		return
	}
	for _, p := range cold {
		_ = unix.Fadvise(int(f.Fd()), p.From, p.To-p.From, unix.FADV_DONTNEED)
	}
}
