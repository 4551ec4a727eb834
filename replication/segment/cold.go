package segment

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// What followers write is read by nobody before they lead: clients read at the leader, and Raft and the state machine
// from the log's own cache. Left in the page cache it would fill the memory three times with the same data, and cost
// more than the disk does: every page of it is one that the kernel has to find, and a virtual machine to be given,
// first. Small entries share their pages with others, and stay.

// coldBytes is the size from which data that nobody reads soon is kept out of the page cache.
const coldBytes = 64 << 10

// span is a part of a file.
type span struct{ from, to int64 }

// chill notes that a record is cold, but for the pages it may share with others: a page that has left the cache would
// have to be read before the next batch can write the rest of it.
func (c *committer) chill(from, to int64) {
	const mask = pageBytes - 1
	from, to = (from+mask)&^mask, to&^mask
	if n := len(c.cold); n > 0 && c.cold[n-1].to+pageBytes >= from {
		c.cold[n-1].to = to
	} else if from < to {
		c.cold = append(c.cold, span{from, to})
	}
}

// writePart writes the next n bytes of rest, and takes them off.
func (c *committer) writePart(fd int, rest *[][]byte, offset, n int64, write vectorWriter) error {
	c.part = c.part[:0]
	for n > 0 {
		v := (*rest)[0]
		if int64(len(v)) > n {
			(*rest)[0] = v[n:]
			v = v[:n]
		} else {
			*rest = (*rest)[1:]
		}
		c.part = append(c.part, v)
		n -= int64(len(v))
	}
	err := writeVectors(fd, c.part, offset, write)
	clear(c.part)
	return err
}

// writeCold writes past the page cache if the file system can: the larger ones since Linux 6.14. The pages are on their
// way to the disk when it returns, and leave the cache when they are there.
func (c *committer) writeCold(fd int, vectors [][]byte, offset int64) (n int, err error) {
	if !c.cached {
		n, err = unix.Pwritev2(fd, vectors, offset, unix.RWF_DONTCACHE)
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			return n, err
		}
		c.cached = true
	}
	return unix.Pwritev(fd, vectors, offset)
}

// vectorWriter is unix.Pwritev or something like it.
type vectorWriter func(fd int, vectors [][]byte, offset int64) (n int, err error)

// evictCold takes what the last write left in the page cache out again, now that it is synced: all of it where the file
// system cannot write past its cache, and on ext4 what went into blocks that were in use before. It is advice; if the
// kernel does not take it, nothing is lost but memory.
func (c *committer) evictCold(f vfs.File) {
	if f.Fd() == vfs.InvalidFd {
		return
	}
	for _, p := range c.cold {
		_ = unix.Fadvise(int(f.Fd()), p.from, p.to-p.from, unix.FADV_DONTNEED)
	}
}
