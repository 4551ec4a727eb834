package segment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
)

var errClosed = errors.New("the log is closed")

// Log is the segment log of one disk. Make one with Open.
type Log struct {
	cfg     Config
	salt    uint32 // of record header checksums
	log     *slog.Logger
	metrics *metrics
	damaged []Damage // set by Open, not changed afterwards
	disk    *diskio.Reader
	begun   time.Time

	durable  atomic.Uint64 // Position; written by the committer only, with mu held
	appended atomic.Int64  // bytes of records that were ever appended; written with mu held

	// mu guards everything below. It is never held across I/O.
	mu        sync.Mutex
	committed sync.Cond // for the committer: records, a ready segment, an end
	room      sync.Cond // for appenders: less tail
	prepare   sync.Cond // for the preparer: a segment is wanted
	unread    sync.Cond // for Close: reading is 0
	reading   int       // the sum of segmentFile.reads

	groups map[GroupKey]*GroupLog

	// recent holds the records in memory in position order:
	// recent.first <= durableIndex <= written <= recent.next; records below durableIndex are the cache, those from
	// there to taken are being written, the rest wait.
	recent       recordRing
	durableIndex uint64
	taken        uint64
	cacheBytes   int64 // of records below durableIndex
	tailBytes    int64 // of records at and above durableIndex

	segments map[SegmentNo]*segmentFile // every segment with a number, of any state
	current  *segmentFile               // the one that appends go to
	offset   uint32                     // where the next record goes in it; a multiple of 64
	future   []*segmentFile             // numbered segments after current, ascending; the preparer makes them ready
	unready  []*segmentFile             // the ones of current and future that are not ready, ascending
	nextNo   SegmentNo                  // above every number ever used
	recycled []*segmentFile             // files to be used again, still under their old number
	perSync  int64                      // bytes that a sync covers, a moving average
	lack     lack                       // of space for another segment
	told     lackTold                   // what people were told of it since there was some
	stuck    bool                       // the committer finds no space for records
	openLRU  []*segmentFile             // segments with an open file for reading, oldest use first

	holdBytes            int64 // how far back the log is held
	usedBytes, freeBytes int64 // of segments that hold records, and of those that are there and free; walkSpaceLocked says the same

	notes       []note // ascending by position; notes[:notesFirst] are gone
	notesFirst  int
	notesActive bool // the committer runs callbacks just now

	idle       *time.Timer // nil until first needed
	idleArmed  bool
	lastAppend int64 // see now
	closingDue bool  // the idle timer asks for a closing record
	marked     Position

	batches [askers]latencies // since each asked for SyncLatency last

	failure       error
	closing       bool
	committerGone bool
	closed        bool // nothing is read from the disk any more; reading does not grow
	closeErr      error

	impatient bool          // guarded by mu: nothing waits for room any more
	hurry     chan struct{} // closed when impatient is set

	stop       chan struct{} // closed by Close and by failure
	stopOnce   sync.Once
	closeOnce  sync.Once
	background sync.WaitGroup
	preparing  diskio.Syncer // Open's, then the preparer's
}

// note is a callback that waits for a position.
type note struct {
	at Position
	fn func(error)
}

// Damaged returns the replicas that have lost records which were durable once. Each must be replaced by a new member
// under the next incarnation. A torn tail is not damage.
func (l *Log) Damaged() []Damage { return slices.Clone(l.damaged) }

// HoldWithin has the log held no further back than n bytes from its end, and no further than Config.HoldBytes.
func (l *Log) HoldWithin(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holdBytes = max(0, min(n, l.cfg.HoldBytes))
}

// heldFromLocked is the first segment that may be held.
func (l *Log) heldFromLocked() SegmentNo {
	if l.cfg.HoldBytes < 0 {
		return l.nextNo
	}
	back := SegmentNo(l.holdBytes / l.cfg.SegmentBytes)
	return l.current.no - min(back, l.current.no)
}

// Group returns the log of a group, or nil if the disk does not hold it.
func (l *Log) Group(key GroupKey) *GroupLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groups[key]
}

// CreateGroup adds an empty log whose first entry will be appliedIndex+1. Nothing is written: until the caller has
// stored the group durably, with NextNeeded, the group does not exist after a restart. KindExists if it is there.
func (l *Log) CreateGroup(key GroupKey, appliedIndex, appliedTerm uint64) (*GroupLog, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		return nil, l.failure
	}
	if l.groups[key] != nil {
		return nil, storage.E("create log", storage.KindExists, "group "+key.String(), nil)
	}
	g := newGroupLog(l, GroupStart{Key: key, AppliedIndex: appliedIndex, AppliedTerm: appliedTerm, From: l.Durable()})
	l.groups[key] = g
	return g, nil
}

// DropGroup forgets a group. Its records no longer keep segments from being recycled; its GroupLog refuses appends.
func (l *Log) DropGroup(key GroupKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.groups[key]; g != nil {
		g.dropped = true
		g.clearEntriesLocked()
		delete(l.groups, key)
	}
}

// End returns the end of everything appended.
func (l *Log) End() Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endLocked()
}

func (l *Log) endLocked() Position { return PositionOf(l.current.no, l.offset) }

// Durable returns the position before which everything is durable.
func (l *Log) Durable() Position { return Position(l.durable.Load()) }

// Wait returns nil as soon as everything before p is durable, KindIO when the disk fails, KindCanceled when ctx ends
// first.
func (l *Log) Wait(ctx context.Context, p Position) error {
	if p <= l.Durable() {
		return nil
	}
	done := make(chan error, 1)
	l.Notify(p, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return storage.E("wait for the log", storage.KindCanceled, p.String(), ctx.Err())
	}
}

// Notify calls fn once: with nil when everything before p is durable, with an error of KindIO when the disk has
// failed, or of KindUnavailable when the log was closed before. Calls come from the committer in position order;
// if there is nothing to wait for, and no earlier call is outstanding, fn is called before Notify returns. fn must not
// block.
func (l *Log) Notify(p Position, fn func(error)) {
	l.mu.Lock()
	if !l.committerGone && (p > l.Durable() || l.notesActive) {
		l.addNoteLocked(note{p, fn})
		l.mu.Unlock()
		return
	}
	var err error
	if p > l.Durable() {
		err = l.refusalLocked()
	}
	l.mu.Unlock()
	fn(err)
}

// addNoteLocked keeps notes ascending, and first come first served among equals.
func (l *Log) addNoteLocked(n note) {
	l.notes = append(l.notes, n)
	for i := len(l.notes) - 1; i > l.notesFirst && l.notes[i-1].at > n.at; i-- {
		l.notes[i], l.notes[i-1] = l.notes[i-1], l.notes[i]
	}
}

// refusalLocked is why nothing more will become durable: the failure, or that the log is closed.
func (l *Log) refusalLocked() error {
	if l.failure != nil {
		return l.failure
	}
	return storage.E("append to the log", storage.KindUnavailable, l.cfg.Dir, errClosed)
}

// OldestPending returns when the oldest record that is not durable was appended; ok is false if all are.
func (l *Log) OldestPending() (since time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.durableIndex == l.recent.next {
		return time.Time{}, false
	}
	return l.begun.Add(time.Duration(l.recent.at(l.durableIndex).appends)), true
}

// StalledReads returns since when reads wait for the disk and it has answered none; ok is false if none waits.
func (l *Log) StalledReads() (since time.Time, ok bool) { return l.disk.Stalled() }

// now is the time since the log was opened, in nanoseconds. The time of day is not used: when it is set back, a disk that
// hangs would look young, and an idle log would wait for its closing record.
func (l *Log) now() int64 { return int64(time.Since(l.begun)) }

// Failed returns why the disk has failed, of KindIO, or nil.
func (l *Log) Failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

// fail marks the disk as failed for good. The committer then tells every waiter.
func (l *Log) fail(op string, cause error) {
	l.mu.Lock()
	if l.failure != nil {
		l.mu.Unlock()
		return
	}
	kind := storage.KindIO
	if diskio.NoSpace(cause) { // the log is about to be closed, and what waits has no room
		kind = storage.KindNoSpace
	}
	err := storage.E(op, kind, l.cfg.Dir, cause)
	l.failure = err
	l.wakeAllLocked()
	l.mu.Unlock()
	l.stopOnce.Do(func() { close(l.stop) })
	l.metrics.failed.Set(1)
	l.log.Error("segment log failed; its replicas stop until the process starts again", "dir", l.cfg.Dir, "error", err)
	l.cfg.OnFailure(err)
}

func (l *Log) wakeAllLocked() {
	l.committed.Broadcast()
	l.room.Broadcast()
	l.prepare.Broadcast()
}

// admitLocked waits until n more bytes fit into the tail. The lock is given up meanwhile.
func (l *Log) admitLocked(n int64) error {
	for l.failure == nil && !l.closing && l.tailBytes > 0 && l.tailBytes+n > l.cfg.MaxTailBytes {
		l.room.Wait()
	}
	if l.failure != nil || l.closing {
		return l.refusalLocked()
	}
	return nil
}

// Align lets the log write records of large, cold entries so that their blocks begin where a page of the file does, with zeroes
// before them, and around the page cache where the file system can. It stays so. Earlier builds do not open a log that holds one.
func (l *Log) Align() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg.Aligned = true
}

// padLocked gives the record the padding that brings its blocks to a page, if it is to be written next.
func (l *Log) padLocked(r *record) {
	r.header.padding, r.direct = 0, r.blocks > 0 && l.cfg.Aligned
	if r.direct {
		r.header.padding = uint16(-(int(l.offset) + recordHeaderBytes + prefixBytes + len(r.ext) + len(r.data) - r.blocks) & (pageBytes - 1))
	}
}

// pushLocked gives the record its position and hands it to the committer. The caller wakes the committer.
func (l *Log) pushLocked(r *record, now int64) {
	l.padLocked(r)
	if int64(l.offset)+int64(r.header.size())+recordHeaderBytes > int64(l.current.capacity) {
		l.rollLocked(now)
		l.padLocked(r)
		if int64(l.offset)+int64(r.header.size())+recordHeaderBytes > int64(l.current.capacity) { // a very small segment
			r.header.padding, r.direct = 0, false
		}
	}
	l.placeLocked(r, now)
}

func (l *Log) placeLocked(r *record, now int64) {
	r.header.position = l.endLocked()
	r.seg = l.current
	r.appends = now
	l.offset += uint32(r.header.size())
	l.tailBytes += int64(r.header.size())
	l.appended.Add(int64(r.header.size()))
	l.recent.push(r)
	l.lastAppend = now
}

// rollLocked seals the current segment and goes on in the next one, which need not be ready yet: the committer waits
// for it, the appender does not.
func (l *Log) rollLocked(now int64) {
	if len(l.future) == 0 {
		l.planLocked()
	}
	next := l.future[0]
	l.future = l.future[1:]
	next.claimed = true
	l.usedBytes += int64(next.capacity)
	if next.ready {
		l.freeBytes -= int64(next.capacity)
	}
	// The seal never is the last record of a batch, because a record follows it before the lock is given up. So no
	// durable position lies behind a seal, where recovery would find nothing.
	l.placeLocked(&record{header: recordHeader{kind: kindSeal, index: uint64(next.no)}}, now)
	l.current.used = l.offset
	l.current, l.offset = next, segmentHeaderBytes
	l.prepare.Signal()
}

// planLocked numbers one more future segment.
func (l *Log) planLocked() *segmentFile {
	s := &segmentFile{no: l.nextNo, capacity: uint32(l.cfg.SegmentBytes), state: SegmentFree}
	l.nextNo++
	l.segments[s.no] = s
	l.future = append(l.future, s)
	l.unready = append(l.unready, s)
	return s
}

// StopWaiting ends all waiting for room, now and later: what finds none fails the log, with KindNoSpace. Call it before Close
// when users of the log, which may be waiting for room, have to end first. It may be called again.
func (l *Log) StopWaiting() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.impatient {
		l.impatient = true
		close(l.hurry)
		l.wakeAllLocked()
	}
}

// Close writes everything that was appended, and the closing record, syncs, and stops. It waits for the disk, and for
// reads that are under way; later ones are refused with KindUnavailable. Later calls return the same result.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		l.mu.Lock()
		l.closing = true
		l.wakeAllLocked()
		if l.idle != nil {
			l.idle.Stop()
		}
		l.mu.Unlock()
		l.stopOnce.Do(func() { close(l.stop) })
		l.background.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closed = true
		// Guards reads: they use the descriptor, whose number belongs to another file once it is closed.
		for l.reading > 0 {
			l.unread.Wait()
		}
		l.disk.Close()
		l.closeErr = l.failure
		for _, s := range l.segments {
			if err := s.closeFile(); err != nil && l.closeErr == nil {
				l.closeErr = storage.E("close segment", storage.KindIO, fmt.Sprintf("%s of %s", s.no, l.cfg.Dir), err)
			}
		}
		for _, s := range l.recycled {
			_ = s.closeFile()
		}
		l.metrics.unregister()
	})
	return l.closeErr
}
