package segment

import "slices"

// A batch that only small records of a follower are in is written around the page cache as a whole, and is durable when that one write ends
// (diskio.Writer.WriteDurable). Through the cache it is copied into pages of the kernel, one of whose workers writes them, waits, has
// the disk empty its own cache, and waits again. What a leader writes goes there all the same: clients read it at the leader.
//
// Such a write is of whole pages. So it begins with what the first page holds already, which the committer remembers: the same
// bytes go to the same place once more, as they do when the kernel writes a page of its cache.

// wholeBytes is the most data of a batch that is written as a whole: it is copied, so that it lies in whole pages of memory.
const wholeBytes = 512 << 10

// wholeWrite reports whether the records are to be written around the page cache as a whole.
func (c *committer) wholeWrite(records []*record) bool {
	copied := 0
	for _, r := range records {
		copied += len(r.data)
		if !r.follows || r.direct || copied > wholeBytes {
			return false
		}
	}
	return c.writer.Direct(records[0].seg.file) && c.knowTail(records[0])
}

// knowsTail reports whether c.tail is what the page holds before r.
func (c *committer) knowsTail(r *record) bool { return c.tailEnd == r.header.position }

// knowTail reads what the page holds before r, if it is not known; false if that fails.
func (c *committer) knowTail(r *record) bool {
	if c.knowsTail(r) {
		return true
	}
	at := r.header.position
	c.tail = slices.Grow(c.tail[:0], pageBytes)[:at.Offset()%pageBytes]
	if _, err := r.seg.file.ReadAt(c.tail, int64(at.Offset()-at.Offset()%pageBytes)); err != nil {
		return false
	}
	c.tailEnd = at
	return true
}

// keepTail remembers the last page of c.vectors, which end with r.
func (c *committer) keepTail(r *record) {
	last := c.vectors[len(c.vectors)-1]
	c.tail = append(c.tail[:0], last[len(last)-pageBytes:][:r.end().Offset()%pageBytes]...)
	c.tailEnd = r.end()
}
