package storedir

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	openRetry = 100 * time.Millisecond
	// openPatience is how long the opening of a store waits for descriptors or memory. A store that is open waits until it
	// is closed: whoever looks at it from outside sees a disk that hangs, and one that answers again.
	openPatience  = 10 * time.Second
	openTellAgain = time.Minute
)

// FS is the file system of a store, its log and its tables. An open that fails because the process or the machine has no
// descriptor or memory to spare says nothing of the disk, and passes. Pebble takes it for the end of the database, and a log
// without its next segment ends, too; so it is repeated here, below both.
//
// Errors of writes and syncs are not: what they leave behind is not known.
type FS struct {
	vfs.FS
	logger  *slog.Logger
	stop    chan struct{} // closed when the store closes
	opened  atomic.Bool   // the store is open: there is no end to patience
	retries atomic.Int64
	told    atomic.Int64 // when it was last logged, in Unix seconds
}

// NewFS returns a file system over base.
func NewFS(base vfs.FS, logger *slog.Logger) *FS {
	return &FS{FS: base, logger: logger, stop: make(chan struct{})}
}

// Opened says that the store is open: from now on there is no end to patience but Stop.
func (fs *FS) Opened() { fs.opened.Store(true) }

// Stop ends all waiting. It is called once.
func (fs *FS) Stop() { close(fs.stop) }

// Retries returns how many opens were repeated.
func (fs *FS) Retries() int64 { return fs.retries.Load() }

// passing reports whether an error of an open says that resources are short.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// insist repeats open while its error is a passing one.
func insist[F any](fs *FS, name string, open func() (F, error)) (F, error) {
	begun := time.Now()
	for {
		f, err := open()
		if err == nil || !passing(err) || !fs.opened.Load() && time.Since(begun) > openPatience {
			return f, err
		}
		fs.retries.Add(1)
		now := time.Now().Unix()
		if last := fs.told.Load(); now-last >= int64(openTellAgain/time.Second) && fs.told.CompareAndSwap(last, now) {
			fs.logger.Warn("a file of the store cannot be opened for want of descriptors or memory; trying again until it can", "file", name, "error", err)
		}
		select {
		case <-time.After(openRetry):
		case <-fs.stop:
			return f, err
		}
	}
}

// Create implements vfs.FS.
func (fs *FS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return insist(fs, name, func() (vfs.File, error) { return fs.FS.Create(name, c) })
}

// Open implements vfs.FS.
func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return insist(fs, name, func() (vfs.File, error) { return fs.FS.Open(name, opts...) })
}

// OpenReadWrite implements vfs.FS.
func (fs *FS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return insist(fs, name, func() (vfs.File, error) { return fs.FS.OpenReadWrite(name, c, opts...) })
}

// OpenDir implements vfs.FS.
func (fs *FS) OpenDir(name string) (vfs.File, error) {
	return insist(fs, name, func() (vfs.File, error) { return fs.FS.OpenDir(name) })
}

// List implements vfs.FS.
func (fs *FS) List(dir string) ([]string, error) {
	return insist(fs, dir, func() ([]string, error) { return fs.FS.List(dir) })
}

// ReuseForWrite implements vfs.FS. The file may have its new name already when it cannot be opened.
func (fs *FS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	renamed := false
	return insist(fs, to, func() (vfs.File, error) {
		if renamed {
			return fs.FS.OpenReadWrite(to, c)
		}
		f, err := fs.FS.ReuseForWrite(from, to, c)
		if err != nil && passing(err) {
			_, gone := fs.FS.Stat(from)
			renamed = gone != nil
		}
		return f, err
	})
}

// Unwrap implements vfs.FS.
func (fs *FS) Unwrap() vfs.FS { return fs.FS }
