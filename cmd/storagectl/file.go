package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	storage "github.com/storaged/storaged"
)

// fileSource reads a file or a block device, and skips the holes of a file.
type fileSource struct {
	f      *os.File
	size   int64
	offset int64
	// dataUntil is the end of the data that begins at or before offset; holes are known up to there.
	dataUntil int64
	sparse    bool // the file system tells where holes are
}

// openSource opens what import reads; "-" is stdin.
func openSource(path string, stdin io.Reader) (source, error) {
	if path == "-" {
		return newStream(stdin), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, localError("open", path, err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	}
	if err != nil {
		return nil, errors.Join(localError("open", path, err), f.Close())
	}
	size := info.Size()
	switch {
	case info.Mode().IsRegular():
	case info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0:
		if size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, errors.Join(localError("open", path, err), f.Close())
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

// Close implements source.
func (s closingStream) Close() error { return s.f.Close() }

// SizeBytes implements source.
func (s *fileSource) SizeBytes() int64 { return s.size }

// Close implements source.
func (s *fileSource) Close() error { return s.f.Close() }

// Next implements source.
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
		return 0, false, localError("read", s.f.Name(), err)
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

// sink takes what is exported. Data and Zeroes are called in the order of the bytes, without gaps.
type sink interface {
	Data(p []byte, off int64) error
	Zeroes(off, n int64) error
	// Commit makes the result durable under its name. Abort leaves nothing behind where it can. One of the two is called,
	// once.
	Commit(sizeBytes int64) error
	Abort() error
}

// openSink opens what export writes; "-" is stdout. An existing file is replaced only with force.
func openSink(path string, stdout io.Writer, force bool) (sink, error) {
	if path == "-" {
		return streamSink{stdout}, nil
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular() && !info.IsDir():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, localError("open", path, err)
		}
		if info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0 {
			return closingSink{streamSink{f}, f}, nil
		}
		return &deviceSink{f: f}, nil
	case err == nil && info.IsDir():
		return nil, localError("open", path, &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR})
	case err == nil && !force:
		return nil, storage.E("open", storage.KindExists, path, errors.New("the file exists; --force replaces it"))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, localError("open", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-*")
	if err != nil {
		return nil, localError("open", path, err)
	}
	return &fileSink{f: f, path: path}, nil
}

// fileSink writes a sparse file beside the final name, which it gets when it is whole.
type fileSink struct {
	f    *os.File
	path string
}

// Data implements sink.
func (s *fileSink) Data(p []byte, off int64) error {
	return splitZeroes(p, off, func(p []byte, off int64, zero bool) error {
		if zero {
			return nil
		}
		_, err := s.f.WriteAt(p, off)
		return localError("write", s.path, err)
	})
}

// Zeroes implements sink: what is not written is a hole.
func (s *fileSink) Zeroes(int64, int64) error { return nil }

// Commit implements sink.
func (s *fileSink) Commit(sizeBytes int64) error {
	err := s.f.Truncate(sizeBytes)
	if err == nil {
		err = s.f.Chmod(0o644)
	}
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		return errors.Join(localError("write", s.path, err), s.Abort())
	}
	if err := s.f.Close(); err != nil {
		return errors.Join(localError("write", s.path, err), os.Remove(s.f.Name()))
	}
	if err := os.Rename(s.f.Name(), s.path); err != nil {
		return errors.Join(localError("write", s.path, err), os.Remove(s.f.Name()))
	}
	return localError("write", s.path, syncDir(filepath.Dir(s.path)))
}

// Abort implements sink.
func (s *fileSink) Abort() error {
	return errors.Join(s.f.Close(), os.Remove(s.f.Name()))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil // this file system has nothing to sync there
	}
	return errors.Join(err, d.Close())
}

// theOutput is the path, in errors, of what has none.
const theOutput = "the output"

// streamSink writes everything, zeroes too.
type streamSink struct{ w io.Writer }

// Data implements sink.
func (s streamSink) Data(p []byte, _ int64) error {
	_, err := s.w.Write(p)
	return localError("write", theOutput, err)
}

// Zeroes implements sink.
func (s streamSink) Zeroes(off, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeroBuffer)))
		if err := s.Data(zeroBuffer[:part], off); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// Commit implements sink.
func (s streamSink) Commit(int64) error { return nil }

// Abort implements sink.
func (s streamSink) Abort() error { return nil }

// closingSink is a stream that was opened here.
type closingSink struct {
	streamSink
	f *os.File
}

// Commit implements sink.
func (s closingSink) Commit(int64) error { return localError("write", s.f.Name(), s.f.Close()) }

// Abort implements sink.
func (s closingSink) Abort() error { return s.f.Close() }

// deviceSink overwrites a block device, whose old bytes must not show through.
type deviceSink struct{ f *os.File }

// Data implements sink.
func (s *deviceSink) Data(p []byte, off int64) error {
	_, err := s.f.WriteAt(p, off)
	return localError("write", s.f.Name(), err)
}

// Zeroes implements sink.
func (s *deviceSink) Zeroes(off, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeroBuffer)))
		if err := s.Data(zeroBuffer[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Commit implements sink.
func (s *deviceSink) Commit(int64) error {
	return localError("write", s.f.Name(), errors.Join(s.f.Sync(), s.f.Close()))
}

// Abort implements sink.
func (s *deviceSink) Abort() error { return s.f.Close() }

// localKind is the kind of an error of the operating system.
func localKind(err error) storage.Kind {
	var e *storage.Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, fs.ErrNotExist):
		return storage.KindNotFound
	case errors.Is(err, fs.ErrPermission):
		return storage.KindPermission
	case errors.Is(err, fs.ErrExist):
		return storage.KindExists
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return storage.KindNoSpace
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
		return storage.KindInvalid
	default:
		return storage.KindIO
	}
}

// fileCause takes the operation and path off, which the storage.Error around it says already.
func fileCause(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
