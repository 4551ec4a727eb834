package diskio

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

const page = 4096

// TestSyncer syncs a real file by way of the kernel's AIO, many times, and looks whether that way was taken at all.
func TestSyncer(t *testing.T) {
	f := realFile(t)
	var s Syncer
	defer s.Close()
	for i := range 100 {
		if _, err := f.WriteAt(make([]byte, page), int64(i)*page); err != nil {
			t.Fatal(err)
		}
		if err := s.SyncData(f); err != nil {
			t.Fatalf("sync %d: %v", i, err)
		}
		if s.counter == [8]byte{} { // I1: what is not waited for is not durable
			t.Fatalf("sync %d returned before the kernel announced its end", i)
		}
		clear(s.counter[:])
	}
	if s.refused || s.event == nil {
		t.Fatal("the kernel has AIO, but the file was synced without")
	}
}

// TestSyncerWithoutAIO: where AIO is not to be had, files are synced all the same, and errors are still seen.
func TestSyncerWithoutAIO(t *testing.T) {
	f := realFile(t)
	s := Syncer{refused: true}
	if err := s.SyncData(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncData(f); err == nil {
		t.Fatal("a closed file was synced")
	}
}

// TestSyncerError: an error of the device comes back as the sync's. A pipe cannot be synced.
func TestSyncerError(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	var s Syncer
	defer s.Close()
	if err := s.SyncData(pipeFile{fd: w.Fd()}); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("got %v, want EINVAL", err)
	}
}

type pipeFile struct {
	vfs.File
	fd uintptr
}

func (f pipeFile) Fd() uintptr     { return f.fd }
func (f pipeFile) SyncData() error { return unix.Fdatasync(int(f.fd)) }

func realFile(t *testing.T) vfs.File {
	t.Helper()
	f, err := vfs.Default.Create(filepath.Join(t.TempDir(), "file"), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestWholeSync: files and directories are synced with all that the file system knows of them by AIO, too.
func TestWholeSync(t *testing.T) {
	var s Syncer
	defer s.Close()
	if err := s.Sync(realFile(t)); err != nil {
		t.Fatal(err)
	}
	dir, err := vfs.Default.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := s.Sync(dir); err != nil {
		t.Fatal(err)
	}
	if s.refused || s.event == nil {
		t.Fatal("the kernel has AIO, but the file or the directory was synced without")
	}
}
