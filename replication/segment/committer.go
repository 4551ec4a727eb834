package segment

import (
	"errors"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// joinBelow is the size up to which data is copied beside its header instead of being written by reference.
const joinBelow = 1 << 10

// maxVectors is the kernel's limit (IOV_MAX) of buffers in one write.
const maxVectors = 1024

var zeroPage [pageBytes]byte // never written to

// committer is the one goroutine that writes records. Everything in it belongs to that goroutine.
type committer struct {
	l       *Log
	batch   []*record
	meta    []byte   // headers, prefixes, small data and padding of a batch
	vectors [][]byte // what one segment's part of the batch is made of
	cold    []span   // page-aligned parts of the vectors that are not to stay in the page cache, ascending
	part    [][]byte // what one system call writes of the vectors
	cached  bool     // the file system refused a write past its cache once
	joined  []byte   // for files without a descriptor
	sync    dataSync
	due     []note
	surplus []vfs.File // of sealed segments, to be closed
}

// run is the committer's loop; it ends when the log is closed and everything is written, or when the disk failed.
func (c *committer) run() {
	defer c.l.background.Done()
	for c.take() {
		mark := c.l.Durable()
		if op, err := c.write(mark); err != nil {
			c.l.fail(op, err)
			continue
		}
		c.finish()
	}
	c.leave()
}

// take waits for records and takes all there are. It returns false at the end of the log's life.
func (c *committer) take() bool {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.failure == nil && l.taken == l.recent.next && !l.closingWantedLocked() {
		if l.closing {
			return false
		}
		if !l.idleArmed && l.marked != l.endLocked() {
			l.armIdleLocked(l.cfg.IdleAfter)
		}
		l.committed.Wait()
	}
	if l.failure != nil {
		return false
	}
	if l.taken == l.recent.next {
		l.closingDue = false
		l.pushLocked(&record{header: recordHeader{kind: kindClosing}}, l.now())
		l.marked = l.endLocked()
	}
	c.batch = c.batch[:0]
	for ; l.taken < l.recent.next; l.taken++ {
		c.batch = append(c.batch, l.recent.at(l.taken))
	}
	return true
}

// closingWantedLocked reports whether a closing record is to be written now: the log is idle or closing, and the
// durable mark of no record says that everything is durable.
func (l *Log) closingWantedLocked() bool {
	return (l.closingDue || l.closing) && l.marked != l.endLocked()
}

func (l *Log) armIdleLocked(d time.Duration) {
	l.idleArmed = true
	if l.idle == nil {
		l.idle = time.AfterFunc(d, l.onIdle)
	} else {
		l.idle.Reset(d)
	}
}

// onIdle runs when the idle timer ends. The timer is not touched by appends: it is armed again for what is left.
func (l *Log) onIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idleArmed = false
	if l.closing || l.failure != nil || l.marked == l.endLocked() {
		return
	}
	quiet := time.Duration(l.now() - l.lastAppend)
	if left := l.cfg.IdleAfter - quiet; left > 0 || l.durableIndex != l.recent.next {
		l.armIdleLocked(max(left, time.Millisecond))
		return
	}
	l.closingDue = true
	l.committed.Signal()
}

// write writes and syncs the batch: one write and one sync for each segment it touches, which is nearly always one.
func (c *committer) write(mark Position) (op string, err error) {
	for rest := c.batch; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].seg == rest[0].seg {
			n++
		}
		if op, err := c.writeSegment(rest[:n], mark); err != nil {
			return op, err
		}
		rest = rest[n:]
	}
	return "", nil
}

func (c *committer) writeSegment(records []*record, mark Position) (op string, err error) {
	s := records[0].seg
	if err := c.l.awaitReady(s); err != nil {
		return "write segment", err
	}
	c.gather(records, mark)
	start := time.Now()
	if err := c.put(s.file, int64(records[0].header.position.Offset())); err != nil {
		return "write segment", err
	}
	written := time.Now()
	if err := c.sync.of(s.file); err != nil {
		return "sync segment", err
	}
	c.evictCold(s.file)
	c.l.metrics.write.Observe(written.Sub(start).Seconds())
	c.l.metrics.sync.Observe(time.Since(written).Seconds())
	return "", nil
}

// awaitReady waits until the preparer has made the segment ready.
func (l *Log) awaitReady(s *segmentFile) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !s.ready && l.failure == nil {
		l.committed.Wait()
	}
	if l.failure != nil {
		return l.failure
	}
	s.state = SegmentOpen
	return nil
}

// gather lays out records of one segment as vectors: large data by reference, everything else in meta. The last page
// is filled up with zeroes, so that the kernel never has to read a page to write a part of it.
func (c *committer) gather(records []*record, mark Position) {
	need := pageBytes
	for _, r := range records {
		need += recordHeaderBytes + prefixBytes + recordAlignBytes + len(r.ext)
		if len(r.data) < joinBelow {
			need += len(r.data)
		}
	}
	if cap(c.meta) < need {
		c.meta = make([]byte, 0, need+need/2)
	}
	m, from := c.meta[:0], 0 // m[from:] is not in vectors yet
	c.vectors, c.cold = c.vectors[:0], c.cold[:0]
	for _, r := range records {
		if r.cold {
			c.chill(int64(r.header.position.Offset()), int64(r.end().Offset()))
		}
		h := r.header
		h.durable = mark
		at := len(m)
		m = m[:at+recordHeaderBytes]
		h.encode(m[at:], c.l.salt)
		if h.payload > 0 {
			m = append(m, r.prefix[:]...)
			m = append(m, r.ext...)
			if len(r.data) < joinBelow {
				m = append(m, r.data...)
			} else {
				c.vectors = append(c.vectors, m[from:], r.data)
				from = len(m)
			}
		}
		m = append(m, zeroPage[:h.size()-recordHeaderBytes-int(h.payload)]...)
	}
	end := int(records[len(records)-1].end().Offset())
	m = append(m, zeroPage[:-end&(pageBytes-1)]...)
	if from < len(m) {
		c.vectors = append(c.vectors, m[from:])
	}
}

// put writes the vectors at the offset.
func (c *committer) put(f vfs.File, offset int64) error {
	if f.Fd() == vfs.InvalidFd {
		c.joined = c.joined[:0]
		for _, v := range c.vectors {
			c.joined = append(c.joined, v...)
		}
		_, err := f.WriteAt(c.joined, offset)
		return err
	}
	fd, rest := int(f.Fd()), c.vectors
	for _, p := range c.cold {
		err := c.writePart(fd, &rest, offset, p.from-offset, unix.Pwritev)
		if err == nil {
			err = c.writePart(fd, &rest, p.from, p.to-p.from, c.writeCold)
		}
		if err != nil {
			return err
		}
		offset = p.to
	}
	return writeVectors(fd, rest, offset, unix.Pwritev)
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

// finish makes the batch known as durable, keeps the cache in its bounds and calls who waited.
func (c *committer) finish() {
	l := c.l
	last := c.batch[len(c.batch)-1]
	var bytes int64
	for _, r := range c.batch {
		bytes += int64(r.header.size())
	}
	l.mu.Lock()
	l.durable.Store(uint64(last.end()))
	l.durableIndex = l.taken
	l.tailBytes -= bytes
	l.cacheBytes += bytes
	l.perSync += (bytes - l.perSync) / 8
	l.trimCacheLocked()
	c.sealBelowLocked(last.seg)
	l.room.Broadcast()
	l.notesActive = true
	for l.dueNotesLocked(&c.due, l.Durable()) {
		l.mu.Unlock()
		c.call(nil)
		l.mu.Lock()
	}
	l.notesActive = false
	l.mu.Unlock()
	l.metrics.records.Add(float64(len(c.batch)))
	l.metrics.bytes.Add(float64(bytes))
	l.metrics.batch.Observe(float64(len(c.batch)))
	clear(c.batch)
	clear(c.vectors)
	if len(c.surplus) > 0 {
		l.closeFiles(c.surplus)
		clear(c.surplus)
		c.surplus = c.surplus[:0]
	}
}

// trimCacheLocked lets go of the oldest durable records above CacheBytes.
func (l *Log) trimCacheLocked() {
	for l.cacheBytes > l.cfg.CacheBytes && l.recent.first < l.durableIndex {
		r := l.recent.pop()
		l.cacheBytes -= int64(r.header.size())
		if r.group != nil {
			r.group.forgetLocked(r)
		}
	}
}

// sealBelowLocked marks the segments that the batch has left behind. A seal and the record after it are always in
// one batch, so no segment is missed.
func (c *committer) sealBelowLocked(last *segmentFile) {
	if c.batch[0].seg == last {
		return
	}
	for _, r := range c.batch {
		if r.seg != last {
			if r.seg.state != SegmentSealed {
				r.seg.state = SegmentSealed
				c.surplus = append(c.surplus, c.l.noteOpenLocked(r.seg)...)
			}
			r.seg.used = r.end().Offset()
		}
	}
}

// dueNotesLocked moves the notes up to p to due, and reports whether there are any.
func (l *Log) dueNotesLocked(due *[]note, p Position) bool {
	n := l.notesFirst
	for n < len(l.notes) && l.notes[n].at <= p {
		n++
	}
	*due = append((*due)[:0], l.notes[l.notesFirst:n]...)
	clear(l.notes[l.notesFirst:n])
	l.notesFirst = n
	if rest := len(l.notes) - n; n >= 64 && n >= rest {
		copy(l.notes, l.notes[n:])
		clear(l.notes[rest:])
		l.notes, l.notesFirst = l.notes[:rest], 0
	}
	return len(*due) > 0
}

func (c *committer) call(err error) {
	for i := range c.due {
		c.due[i].fn(err)
		c.due[i].fn = nil
	}
}

// leave tells everyone who still waits that nothing more will become durable.
func (c *committer) leave() {
	c.sync.close()
	l := c.l
	l.mu.Lock()
	err := l.refusalLocked()
	for l.dueNotesLocked(&c.due, ^Position(0)) {
		l.mu.Unlock()
		c.call(err)
		l.mu.Lock()
	}
	l.committerGone = true
	l.prepare.Broadcast()
	l.mu.Unlock()
}
