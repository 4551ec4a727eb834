package segment

import (
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/storaged/storaged/internal/aligned"
	"github.com/storaged/storaged/internal/diskio"
)

// joinBelow is the size up to which data is copied beside its header instead of being written by reference.
const joinBelow = 1 << 10

var zeroPage [pageBytes]byte // never written to

// committer is the one goroutine that writes records. Everything in it belongs to that goroutine.
type committer struct {
	l       *Log
	batch   []*record
	meta    []byte        // headers, prefixes, small data and padding of a batch
	vectors [][]byte      // what one segment's part of the batch is made of
	spans   []diskio.Span // parts of the vectors that do not go through the page cache, or do not stay there, ascending
	writer  diskio.Writer
	sync    diskio.Syncer
	due     []note
	tail    []byte     // what the page holds before tailEnd
	tailEnd Position   // where the records end that were written as a whole; 0: tail is not known
	toClose []vfs.File // of sealed segments: more are open than Config.MaxOpenFiles
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
	c.releaseWaiters()
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
	start := time.Now()
	var durable bool
	for {
		durable, err = c.writeRecords(records, mark)
		if err == nil {
			break
		}
		// A file system that writes nothing in place can be full although the segment is there. What it did not take was
		// never on its way: the same bytes go to the same place once there is room. A sync is not repeated.
		if !diskio.NoSpace(err) || !c.l.awaitSpace(err) {
			return "write segment", err
		}
	}
	written := time.Now()
	if durable {
		written = start // it counts as a sync
	} else if err := c.sync.SyncData(s.file); err != nil {
		return "sync segment", diskio.Synced(err)
	} else {
		c.writer.Evict(s.file, c.spans)
	}
	c.l.metrics.direct.Add(float64(c.writer.DirectBytes))
	c.writer.DirectBytes = 0
	c.l.metrics.write.Observe(written.Sub(start).Seconds())
	c.l.metrics.sync.Observe(time.Since(written).Seconds())
	c.l.noteBatch(time.Since(start), slices.ContainsFunc(records, func(r *record) bool { return r.header.kind == kindEntry }))
	return "", nil
}

// writeRecords writes records of one segment once, and reports whether they are durable already.
func (c *committer) writeRecords(records []*record, mark Position) (durable bool, err error) {
	r := records[0]
	whole := c.wholeWrite(records)
	at := int64(r.header.position.Offset())
	if c.knowsTail(r) { // or the kernel would have to read it
		at -= int64(len(c.tail))
	}
	c.gather(records, mark, whole)
	if whole {
		if durable, err = c.writer.WriteDurable(r.seg.file, c.vectors, at); durable && err == nil {
			c.keepTail(records[len(records)-1])
		}
		if durable {
			return true, err
		}
	}
	if err = c.writer.WriteAt(r.seg.file, c.vectors, at, c.spans); err == nil {
		c.tailEnd = 0
	}
	return false, err
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

// awaitSpace lets some time pass before a write that found no room is tried again; false if the log stops, or nothing is to
// wait any more.
func (l *Log) awaitSpace(err error) bool {
	l.mu.Lock()
	if !l.stuck {
		l.log.Warn("no space for records", "dir", l.cfg.Dir, "error", err)
	}
	l.stuck = true
	l.mu.Unlock()
	select {
	case <-time.After(noSpaceRetry):
		return true
	case <-l.stop:
		return false
	case <-l.hurry:
		return false
	}
}

// gather lays out records of one segment as vectors: large data by reference, everything else in meta. The last page
// is filled up with zeroes, so that the kernel never has to read a page to write a part of it.
//
// What is written as a whole is one vector.
func (c *committer) gather(records []*record, mark Position, whole bool) {
	need := 2 * pageBytes
	for _, r := range records {
		need += r.metaBytes(whole)
	}
	if cap(c.meta) < need {
		c.meta = aligned.Bytes(need + need/2)
	}
	m, from := c.meta[:0], 0 // m[from:] is not in vectors yet
	flush := func() {
		if from < len(m) {
			c.vectors = append(c.vectors, m[from:len(m):len(m)])
			from = len(m)
		}
	}
	c.vectors, c.spans = c.vectors[:0], c.spans[:0]
	if c.knowsTail(records[0]) {
		m = append(m, c.tail...)
	}
	for _, r := range records {
		switch {
		case r.direct:
			c.markDirect(r)
			if r.ownPages() { // what is written with the blocks lies in pages of memory, too
				flush()
				from = (from + pageBytes - 1) &^ (pageBytes - 1)
				m = m[:from]
			}
		case r.cold:
			c.markCold(int64(r.header.position.Offset()), int64(r.end().Offset()))
		}
		h := r.header
		h.durable = mark
		at := len(m)
		m = m[:at+recordHeaderBytes]
		h.encode(m[at:], c.l.salt)
		if h.payload > 0 {
			m = append(m, r.prefix[:]...)
			m = append(m, r.ext...)
			m = append(m, zeroPage[:h.padding]...)
			head := r.headBytes(whole)
			m = append(m, r.data[:head]...)
			if head < len(r.data) {
				flush()
				c.vectors = append(c.vectors, r.data[head:])
			}
		}
		m = append(m, zeroPage[:h.size()-recordHeaderBytes-h.bodyBytes()]...)
	}
	end := int(records[len(records)-1].end().Offset())
	m = append(m, zeroPage[:-end&(pageBytes-1)]...)
	flush()
}

// headBytes is how much of the data is copied beside the record's header instead of being written by reference.
func (r *record) headBytes(whole bool) int {
	switch {
	case r.direct:
		return len(r.data) - r.blocks
	case whole || len(r.data) < joinBelow:
		return len(r.data)
	}
	return 0
}

// metaBytes is the most that a record takes of committer.meta.
func (r *record) metaBytes(whole bool) int {
	n := recordHeaderBytes + prefixBytes + recordAlignBytes + len(r.ext) + int(r.header.padding) + r.headBytes(whole)
	if r.direct {
		n += pageBytes
	}
	return n
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
	l.stuck = false
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
	if len(c.toClose) > 0 {
		l.closeFiles(c.toClose)
		clear(c.toClose)
		c.toClose = c.toClose[:0]
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
				c.toClose = append(c.toClose, c.l.noteOpenLocked(r.seg)...)
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

// releaseWaiters tells everyone who still waits that nothing more will become durable.
func (c *committer) releaseWaiters() {
	c.writer.Close()
	c.sync.Close()
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
