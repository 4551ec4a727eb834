package transfer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Source yields what is imported, from its first byte to its last.
type Source interface {
	// Head returns the beginning: headBytes, or less when there is no more. It comes before Next.
	Head() ([]byte, error)
	// Next returns the next piece: a hole of n bytes, or n bytes in buf, whose length bounds them. At the end io.EOF,
	// with no piece. It is not called again after an error.
	Next(buf []byte) (n int64, hole bool, err error)
	// SizeBytes is negative when it is not known.
	SizeBytes() int64
	Close() error
}

// newStream returns a source that reads r, and can look at its beginning before.
func newStream(r io.Reader) streamSource { return streamSource{bufio.NewReaderSize(r, 4096)} }

// streamSource reads what has no size and no holes, such as standard input.
type streamSource struct{ r *bufio.Reader }

// Next implements Source.
func (s streamSource) Next(buf []byte) (int64, bool, error) {
	n, err := io.ReadFull(s.r, buf)
	if err == io.ErrUnexpectedEOF || err == io.EOF && n > 0 {
		err = nil
	}
	return int64(n), false, err
}

// SizeBytes implements Source.
func (s streamSource) SizeBytes() int64 { return -1 }

// Close implements Source.
func (s streamSource) Close() error { return nil }

// Head implements Source. It waits for the beginning.
func (s streamSource) Head() ([]byte, error) {
	head, err := s.r.Peek(headBytes)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head, LocalError("read", "the input", err)
}

// Head implements Source.
func (s *fileSource) Head() ([]byte, error) {
	head := make([]byte, headBytes)
	n, err := s.f.ReadAt(head, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head[:n], LocalError("read", s.f.Name(), err)
}

// fileSource reads a file or a block device, and skips the holes of a file.
type fileSource struct {
	f      *os.File
	size   int64
	offset int64
	// dataUntil is the end of the data that begins at or before offset; holes are known up to there.
	dataUntil int64
	sparse    bool // the file system tells where holes are
}

// OpenSource opens what import reads; "-" is stdin.
func OpenSource(path string, stdin io.Reader) (Source, error) {
	if path == "-" {
		return newStream(stdin), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, LocalError("open", path, err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	}
	if err != nil {
		return nil, errors.Join(LocalError("open", path, err), f.Close())
	}
	size := info.Size()
	switch {
	case info.Mode().IsRegular():
	case info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0:
		if size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, errors.Join(LocalError("open", path, err), f.Close())
		}
	default: // a pipe, or the like
		return closingStream{newStream(f), f}, nil
	}
	return &fileSource{f: f, size: size, sparse: info.Mode().IsRegular()}, nil
}

// closingStream is a stream that was opened here.
type closingStream struct {
	streamSource
	f *os.File
}

// Close implements Source.
func (s closingStream) Close() error { return s.f.Close() }

// SizeBytes implements Source.
func (s *fileSource) SizeBytes() int64 { return s.size }

// Close implements Source.
func (s *fileSource) Close() error { return s.f.Close() }

// Next implements Source.
func (s *fileSource) Next(buf []byte) (int64, bool, error) {
	if s.offset >= s.size {
		return 0, false, io.EOF
	}
	if s.sparse && s.offset >= s.dataUntil {
		if hole := s.skipHole(); hole > 0 {
			s.offset += hole
			return hole, true, nil
		}
	}
	n := min(int64(len(buf)), s.size-s.offset)
	if s.sparse {
		n = min(n, s.dataUntil-s.offset)
	}
	if _, err := s.f.ReadAt(buf[:n], s.offset); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the file ends before byte %d; it shrank while it was read", s.offset+n)
		}
		return 0, false, LocalError("read", s.f.Name(), err)
	}
	s.offset += n
	return n, false, nil
}

// skipHole returns the length of the hole at s.offset, 0 when there is data, and finds out how far the data reaches.
func (s *fileSource) skipHole() int64 {
	data, until, ok := dataAt(s.f, s.offset, s.size)
	if !ok {
		s.sparse = false
		return 0
	}
	s.dataUntil = until
	return data - s.offset
}
