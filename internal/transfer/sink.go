package transfer

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	storage "github.com/storaged/storaged"
)

// Sink takes what is exported. Data and Zeroes are called in the order of the bytes, without gaps.
type Sink interface {
	Data(p []byte, off int64) error
	Zeroes(off, n int64) error
	// Commit makes the result durable under its name. Abort leaves nothing behind where it can. One of the two is called,
	// once.
	Commit(sizeBytes int64) error
	Abort() error
}

// OpenSink opens what export writes; "-" is stdout. An existing file is replaced only with force.
func OpenSink(path string, stdout io.Writer, force bool) (Sink, error) {
	if path == "-" {
		return streamSink{stdout}, nil
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular() && !info.IsDir():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, LocalError("open", path, err)
		}
		if info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0 {
			return closingSink{streamSink{f}, f}, nil
		}
		return &deviceSink{f: f}, nil
	case err == nil && info.IsDir():
		return nil, LocalError("open", path, &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR})
	case err == nil && !force:
		return nil, storage.E("open", storage.KindExists, path, errors.New("the file exists; --force replaces it"))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, LocalError("open", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-*")
	if err != nil {
		return nil, LocalError("open", path, err)
	}
	return &fileSink{f: f, path: path}, nil
}

// fileSink writes a sparse file beside the final name, which it gets when it is whole.
type fileSink struct {
	f    *os.File
	path string
}

// Data implements Sink.
func (s *fileSink) Data(p []byte, off int64) error {
	return splitZeroes(p, off, func(p []byte, off int64, zero bool) error {
		if zero {
			return nil
		}
		_, err := s.f.WriteAt(p, off)
		return LocalError("write", s.path, err)
	})
}

// Zeroes implements Sink: what is not written is a hole.
func (s *fileSink) Zeroes(int64, int64) error { return nil }

// Commit implements Sink.
func (s *fileSink) Commit(sizeBytes int64) error {
	err := s.f.Truncate(sizeBytes)
	if err == nil {
		err = s.f.Chmod(0o644)
	}
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		return errors.Join(LocalError("write", s.path, err), s.Abort())
	}
	if err := s.f.Close(); err != nil {
		return errors.Join(LocalError("write", s.path, err), os.Remove(s.f.Name()))
	}
	if err := os.Rename(s.f.Name(), s.path); err != nil {
		return errors.Join(LocalError("write", s.path, err), os.Remove(s.f.Name()))
	}
	return LocalError("write", s.path, syncDir(filepath.Dir(s.path)))
}

// Abort implements Sink.
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

// streamSink writes everything, zeroes too.
type streamSink struct{ w io.Writer }

// Data implements Sink.
func (s streamSink) Data(p []byte, _ int64) error {
	_, err := s.w.Write(p)
	return LocalError("write", Output, err)
}

// Zeroes implements Sink.
func (s streamSink) Zeroes(off, n int64) error { return eachZeroes(off, n, s.Data) }

// Commit implements Sink.
func (s streamSink) Commit(int64) error { return nil }

// Abort implements Sink.
func (s streamSink) Abort() error { return nil }

// closingSink is a stream that was opened here.
type closingSink struct {
	streamSink
	f *os.File
}

// Commit implements Sink.
func (s closingSink) Commit(int64) error { return LocalError("write", s.f.Name(), s.f.Close()) }

// Abort implements Sink.
func (s closingSink) Abort() error { return s.f.Close() }

// deviceSink overwrites a block device, whose old bytes must not show through.
type deviceSink struct{ f *os.File }

// Data implements Sink.
func (s *deviceSink) Data(p []byte, off int64) error {
	_, err := s.f.WriteAt(p, off)
	return LocalError("write", s.f.Name(), err)
}

// Zeroes implements Sink.
func (s *deviceSink) Zeroes(off, n int64) error { return eachZeroes(off, n, s.Data) }

// Commit implements Sink.
func (s *deviceSink) Commit(int64) error {
	return LocalError("write", s.f.Name(), errors.Join(s.f.Sync(), s.f.Close()))
}

// Abort implements Sink.
func (s *deviceSink) Abort() error { return s.f.Close() }
