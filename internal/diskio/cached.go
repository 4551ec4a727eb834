package diskio

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// DropCached has the kernel forget what it holds in memory of n bytes of a file from at on, which are synced; 0: of all to its end. It is a hint: what is not on the disk yet,
// or being used, stays, and file systems in memory have nothing to forget.
func DropCached(f vfs.File, at, n int64) {
	if fd := f.Fd(); fd != vfs.InvalidFd {
		_ = unix.Fadvise(int(fd), at, n, unix.FADV_DONTNEED) // where it cannot, reads are answered from memory, and are right
	}
}
