package segment

import (
	"errors"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/storaged/storaged/internal/diskio"
)

const (
	fillSyncBytes = 8 << 20 // of zeroes between two syncs, so that no sync of the log waits behind all of them
	fillPause     = 5 * time.Millisecond
	noSpaceRetry  = time.Second
)

// lack is what the preparer knows of space for another segment.
type lack uint8

const (
	lackNone  lack = iota // the last attempt found some, or a segment was recycled since
	lackWaits             // it found none, and is not repeated for a while
	lackDue               // it found none, and is repeated
)

// lackTold is what people were told of a lack; each once.
type lackTold uint8

const (
	toldNothing lackTold = iota
	toldLack             // that there is none
	toldRecords          // that records wait for it
)

// preparer keeps Config.FreeSegments segments ready, until the log is closed or failed.
func (l *Log) preparer() {
	defer l.background.Done()
	defer l.preparing.Close()
	for {
		s, old := l.nextToPrepare()
		if s == nil {
			return
		}
		l.prepareOne(s, old)
	}
}

// nextToPrepare waits until a segment is to be made ready, and returns it with the file to be recycled, if any. It
// returns nil when the committer, which may wait for a segment until its end, is gone.
func (l *Log) nextToPrepare() (s, old *segmentFile) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.failure != nil || l.committerGone {
			return nil, nil
		}
		if s = l.wantedLocked(); s != nil {
			break
		}
		l.prepare.Wait()
	}
	return s, l.takeRecycledLocked()
}

// takeRecycledLocked returns a file that is to be used again; nil if there is none.
func (l *Log) takeRecycledLocked() (old *segmentFile) {
	if len(l.recycled) > 0 {
		old, l.recycled = l.recycled[0], l.recycled[1:]
		l.freeBytes -= int64(old.capacity)
	}
	return old
}

// wantedLocked returns the segment with the lowest number that is not ready, or plans another one if fewer than
// FreeSegments are ahead. Numbers are made ready in ascending order.
func (l *Log) wantedLocked() *segmentFile {
	if len(l.unready) == 0 && len(l.future) < l.cfg.FreeSegments && !l.closing {
		l.planLocked()
	}
	if len(l.unready) == 0 {
		return nil
	}
	if s := l.unready[0]; s.claimed || !l.closing && l.lack != lackWaits {
		return s
	}
	return nil
}

// prepareOne makes a segment ready. A lack of space does not fail the disk: the records that want the segment wait until there
// is some, unless the log is closed or about to be.
func (l *Log) prepareOne(s, old *segmentFile) {
	f, err := l.make(s, old)
	if err == nil {
		l.mu.Lock()
		s.file, s.ready = f, true
		if !s.claimed {
			l.freeBytes += int64(s.capacity)
		}
		l.unready = l.unready[1:]
		l.lack, l.told = lackNone, toldNothing
		l.committed.Signal()
		l.mu.Unlock()
		l.metrics.prepared.Inc()
		return
	}
	if errors.Is(err, errStopped) {
		return
	}
	l.mu.Lock()
	full := diskio.NoSpace(err) && !(s.claimed && (l.closing || l.impatient))
	if full {
		l.tellLackLocked(s.claimed, err)
	}
	l.lack = lackNone
	if full && (old != nil || len(l.recycled) == 0) { // else there is one to be used again since
		l.lack = lackWaits
	}
	l.mu.Unlock()
	if !full {
		l.fail("make segment "+s.no.String(), err)
		return
	}
	l.waitForSpace()
}

// tellLackLocked tells people of a lack once, and once more if records wait for a segment.
func (l *Log) tellLackLocked(recordsWait bool, err error) {
	tell := toldLack
	if recordsWait {
		tell = toldRecords
	}
	if tell > l.told {
		l.told = tell
		l.log.Warn("no space for another segment", "dir", l.cfg.Dir, "records_wait", recordsWait, "error", err)
	}
}

var errStopped = errors.New("the log stops")

// Full reports that records wait for room, or that the last attempt to make a segment found none and no segment was recycled
// since.
func (l *Log) Full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stuck || l.lack != lackNone
}

// GiveBack removes files of segments that are free and wait to be used again, until n bytes are given back to the file
// system or none is left. It returns how many were.
func (l *Log) GiveBack(n int64) (given int64) {
	for given < n {
		l.mu.Lock()
		last := len(l.recycled) - 1
		if last < 0 || l.failure != nil || l.closing {
			l.mu.Unlock()
			return given
		}
		s := l.recycled[last]
		l.recycled = l.recycled[:last]
		l.freeBytes -= int64(s.capacity)
		l.mu.Unlock()     // nobody else knows it any more
		_ = s.closeFile() // it is synced, and not needed
		if err := l.cfg.FS.Remove(l.path(segmentName(s.no))); err != nil {
			l.log.Warn("free segment not removed", "dir", l.cfg.Dir, "segment", s.no, "error", err)
			l.keepRecycled(s, err)
			return given
		}
		given += int64(s.capacity)
	}
	return given
}

// keepRecycled leaves a file to be used again under its old name when a lack of room is why it could not be renamed or
// removed.
func (l *Log) keepRecycled(s *segmentFile, err error) {
	if diskio.NoSpace(err) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.recycled = append(l.recycled, s)
		l.freeBytes += int64(s.capacity)
	}
}

// waitForSpace lets some time pass, or less when a segment is recycled, before the next attempt.
func (l *Log) waitForSpace() {
	retry := time.AfterFunc(noSpaceRetry, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.lack == lackWaits {
			l.lack = lackDue
			l.prepare.Signal()
		}
	})
	defer retry.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.lack == lackWaits && l.failure == nil && !l.closing && !l.impatient {
		l.prepare.Wait()
	}
}

// logStartLocked is the position before which no group needs anything.
func (l *Log) logStartLocked() Position {
	start := l.Durable()
	for _, g := range l.groups {
		start = min(start, g.need)
	}
	return start
}

// make makes the file of a segment, of the recycled one if there is one.
func (l *Log) make(s, old *segmentFile) (vfs.File, error) {
	if old != nil {
		return l.reuse(s, old)
	}
	return l.create(s)
}

// reuse gives a recycled file the new number. The order matters: after the rename no record in the file is valid any
// more, because its number is not the file's; only then the header is written, and only when both are durable,
// records.
func (l *Log) reuse(s, old *segmentFile) (vfs.File, error) {
	if err := old.closeFile(); err != nil {
		return nil, err
	}
	name := l.path(segmentName(s.no))
	if err := l.cfg.FS.Rename(l.path(segmentName(old.no)), name); err != nil {
		l.keepRecycled(old, err)
		return nil, err
	}
	if err := l.syncDir(); err != nil {
		return nil, err
	}
	f, err := l.cfg.FS.OpenReadWrite(name, writeCategory)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		if size := info.Size(); size < int64(s.capacity) {
			err = l.fill(f, size&^(pageBytes-1), s)
		}
	}
	f, err = l.finishPrepare(f, s, err)
	if diskio.NoSpace(err) {
		_ = l.cfg.FS.Remove(name) // the next attempt makes a new one, in the place of this one if it is still there
	}
	return f, err
}

// create makes a new file full of zeroes, under a temporary name until it is complete.
func (l *Log) create(s *segmentFile) (vfs.File, error) {
	temporary := l.path(segmentName(s.no) + temporarySuffix)
	f, err := l.cfg.FS.Create(temporary, writeCategory)
	if err != nil {
		return nil, err
	}
	err = l.fill(f, 0, s)
	if f, err = l.finishPrepare(f, s, err); err == nil {
		if err = l.cfg.FS.Rename(temporary, l.path(segmentName(s.no))); err == nil {
			err = l.syncDir()
		}
		if err != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		_ = l.cfg.FS.Remove(temporary) // what is left of it is removed by Open
		return nil, err
	}
	return f, nil
}

// finishPrepare writes the header and syncs, or closes the file if there was an error.
func (l *Log) finishPrepare(f vfs.File, s *segmentFile, err error) (vfs.File, error) {
	if err == nil {
		l.mu.Lock()
		start := l.logStartLocked()
		l.mu.Unlock()
		err = l.writeHeader(f, s.no, s.capacity, start)
	}
	if err == nil && l.preparing.Possible(f) {
		err = diskio.Synced(l.preparing.SyncData(f))
	} else if err == nil {
		err = diskio.Synced(f.Sync())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// fill makes the file as long as the segment. It writes zeroes from the offset on, paced while nobody waits for the
// segment, because a sync of the log into blocks that were never written costs the file system a journal commit. It
// only reserves the space if batches are so large that they would lose more by it, or if records wait already.
func (l *Log) fill(f vfs.File, offset int64, s *segmentFile) error {
	l.mu.Lock()
	reserve := s.claimed && l.durableIndex < l.recent.next || l.perSync >= l.cfg.PrewriteBelowBytes
	l.mu.Unlock()
	err := f.Preallocate(offset, int64(s.capacity)-offset)
	if err == nil {
		_, err = f.WriteAt(zeroPage[:], int64(s.capacity)-pageBytes) // gives the file its length
	}
	switch {
	case err == nil && reserve:
		return nil
	case err != nil && !errors.Is(err, syscall.EOPNOTSUPP):
		return err
	case err == nil: // direct writes that made the file longer would not be asynchronous
		if z := diskio.DirectZeroes(&l.preparing, f); z != nil {
			defer z.Close()
			if err := l.writeZeroes(z.WriteAt, nil, offset, s); !errors.Is(err, syscall.EINVAL) {
				return err
			}
		}
	}
	memory := make([]byte, min(diskio.ZeroBytes, int(s.capacity)))
	return l.writeZeroes(func(n, offset int64) error {
		_, err := f.WriteAt(memory[:n], offset)
		return err
	}, f, offset, s)
}

// writeZeroes writes zeroes up to the segment's end, and syncs the file now and then if there is one.
func (l *Log) writeZeroes(writeAt func(n, offset int64) error, f vfs.File, offset int64, s *segmentFile) error {
	for unsynced := int64(0); offset < int64(s.capacity); {
		n := min(diskio.ZeroBytes, int64(s.capacity)-offset)
		if err := writeAt(n, offset); err != nil {
			return err
		}
		offset += n
		if unsynced += n; unsynced >= fillSyncBytes && f != nil {
			if err := diskio.Synced(l.preparing.SyncData(f)); err != nil {
				return err
			}
			unsynced = 0
		}
		if err := l.pace(s); err != nil {
			return err
		}
	}
	return nil
}

// pace pauses, unless records wait for the segment; errStopped if the log stops and needs it no more.
func (l *Log) pace(s *segmentFile) error {
	l.mu.Lock()
	urgent := s.claimed
	stopped := l.failure != nil || l.closing && !s.claimed
	l.mu.Unlock()
	if stopped {
		return errStopped
	}
	if urgent {
		return nil
	}
	select {
	case <-time.After(fillPause):
	case <-l.stop:
	}
	return nil
}
