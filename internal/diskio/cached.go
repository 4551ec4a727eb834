package diskio

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// DropCached has the kernel forget what it holds in memory of a file whose bytes are synced. It is a hint: what is not on the disk yet,
// or being used, stays, and file systems in memory have nothing to forget.
func DropCached(f vfs.File) {
	if fd := f.Fd(); fd != vfs.InvalidFd {
		_ = unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) // where it cannot, reads are answered from memory, and are right
	}
}
