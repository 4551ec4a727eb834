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

// Span is a part of a file, of whole pages, that is written in a way of its own.
type Span struct {
	From, To int64
	// Direct: around the page cache, from where the vectors lie (open(2), O_DIRECT), where file, file system and memory allow it.
	// All vectors of the part then begin where a page of memory does, and are whole pages.
	Direct bool
	// Cold: what cannot be written directly is not left in the page cache either.
	Cold bool
}

// Writer writes vectors to files, by reference. It belongs to one goroutine, that of AIO. The zero value is ready.
type Writer struct {
	// AIO is given direct writes, so that nothing of Go waits for the disk. Nil: nothing is written directly.
	AIO *Syncer
	// DirectBytes is how much was written directly.
	DirectBytes int64

	part   [][]byte // what one system call writes of the vectors
	cached bool     // the file system refused a write past its cache once
	direct directFile
}

// WriteAt writes the vectors at the offset of the file, the parts that spans name in their way. Spans ascend and do not overlap.
// It may change the elements of vectors. What was written directly is no more durable than the rest before the file is synced.
func (w *Writer) WriteAt(f vfs.File, vectors [][]byte, offset int64, spans []Span) error {
	if w.direct.of != f {
		w.direct.close() // a file that is removed gives its room back only when nobody has it open
	}
	rest := vectors
	for _, p := range spans {
		if err := w.writePart(f, &rest, offset, p.From-offset, Span{}); err != nil {
			return err
		}
		if err := w.writePart(f, &rest, p.From, p.To-p.From, p); err != nil {
			return err
		}
		offset = p.To
	}
	return w.write(f, rest, offset, Span{})
}

// write writes all of vectors, in the way that p says. It changes the slice.
func (w *Writer) write(f vfs.File, vectors [][]byte, offset int64, p Span) error {
	switch {
	case len(vectors) == 0:
		return nil
	case p.Direct && w.AIO != nil && pages(vectors, offset):
		if done, err := w.writeDirect(f, vectors, offset); done {
			return err
		}
	}
	switch {
	case f.Fd() == vfs.InvalidFd:
		_, err := f.WriteAt(bytes.Join(vectors, nil), offset)
		return err
	case p.Cold:
		return writeVectors(int(f.Fd()), vectors, offset, w.writeCold)
	}
	return writeVectors(int(f.Fd()), vectors, offset, unix.Pwritev)
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

// writePart writes the next n bytes of rest, in the way that p says, and takes them off.
func (w *Writer) writePart(f vfs.File, rest *[][]byte, offset, n int64, p Span) error {
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
	err := w.write(f, w.part, offset, p)
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

// Evict takes out of the page cache what a write left there of its cold spans, once the file is synced: all of it where
// the file system cannot write past its cache, and on ext4 what went into blocks that were in use before. It is advice; if
// the kernel does not take it, nothing is lost but memory.
func (w *Writer) Evict(f vfs.File, spans []Span) {
	if f.Fd() == vfs.InvalidFd {
		return
	}
	for _, p := range spans {
		if !p.Cold || p.Direct && w.direct.writes(f) {
			continue
		}
		_ = unix.Fadvise(int(f.Fd()), p.From, p.To-p.From, unix.FADV_DONTNEED)
	}
}

// Close lets go of what the Writer holds. No write may be running.
func (w *Writer) Close() { w.direct.close() }
