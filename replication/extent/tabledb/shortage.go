package tabledb

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/storaged/storaged/internal/diskio"
)

const (
	// spaceRetry is how long nothing is tried again after a write found no room.
	spaceRetry = time.Second
	// givenUpFor is for how long a compaction that found no room says that the tables are short of it. There is another
	// attempt before, unless nothing is to be compacted any more.
	givenUpFor = 5 * spaceRetry
	// compacting is what Pebble calls the writes of compactions, which alone can be given up.
	compacting vfs.DiskWriteCategory = "pebble-compaction"
	// flushing and logging are those of memtables that are written out, and of its log.
	flushing vfs.DiskWriteCategory = "pebble-memtable-flush"
	logging  vfs.DiskWriteCategory = "pebble-wal"
)

// shortage stands below Pebble where it writes, and knows whether it finds room. A lack of it says nothing of the disk, and
// passes; Pebble ends the process when its log or its manifest meets it, and without a pause flushes again and again what did
// not fit. So a write that finds no room waits here, and goes on where it was when there is room again: the bytes that the
// system did not take were never on their way to the disk. Only a compaction is told, so that what it had written of its new
// tables is free for the others; Pebble begins it again, here no sooner than after a pause.
//
// Syncs are not repeated: what they leave behind is not known, whatever the error says.
type shortage struct {
	logger *slog.Logger
	dir    string
	stop   chan struct{} // closed by halt
	halted sync.Once
	opened atomic.Bool // before, nobody waits: whoever opens the store is told
	// makeRoom gives something else of the store back, and reports whether it could. Set before opened.
	makeRoom func() bool

	mu      sync.Mutex // guards all below; a leaf
	waiting int        // writes that wait for room
	gaveUp  time.Time  // when a compaction last found no room; zero when one has ended well since
	told    bool
}

// short reports that the tables want room which is not there.
func (s *shortage) short() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shortLocked()
}

func (s *shortage) shortLocked() bool {
	return s.waiting > 0 || !s.gaveUp.IsZero() && time.Since(s.gaveUp) < givenUpFor
}

// halt ends all waiting: the store closes.
func (s *shortage) halt() { s.halted.Do(func() { close(s.stop) }) }

func (s *shortage) stopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// insist repeats op, which has found no room (err), until it finds some or the store closes.
func (s *shortage) insist(name string, err error, op func() error) error {
	if s.makeRoom() {
		if err = op(); !diskio.NoSpace(err) {
			return err
		}
	}
	s.note(1, name, err)
	defer s.note(-1, name, nil)
	for s.pause(spaceRetry) {
		if err = op(); !diskio.NoSpace(err) {
			return err
		}
	}
	return op()
}

// pause lets time pass; false if the store closes.
func (s *shortage) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-s.stop:
		return false
	}
}

// note keeps the count of those that wait, and tells the operator of the first and of the last.
func (s *shortage) note(n int, name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting += n
	s.tellLocked(name, err)
}

func (s *shortage) tellLocked(name string, err error) {
	switch short := s.shortLocked(); {
	case short && !s.told:
		s.logger.Warn("no room for tables: writes are refused until there is; discard, delete volumes or make room on the file system",
			"dir", s.dir, "file", name, "error", err)
		s.told = true
	case !short && s.told && !s.stopped(): // else nobody has found any: the waiting was ended
		s.logger.Info("there is room for tables again", "dir", s.dir)
		s.told = false
	}
}

// giveUp notes that a compaction found no room.
func (s *shortage) giveUp(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaveUp = time.Now()
	s.tellLocked("", err)
}

// compacted notes that one has ended well.
func (s *shortage) compacted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaveUp = time.Time{}
	s.tellLocked("", nil)
}

// holdBack has a compaction wait until the last one that found no room is some time ago.
func (s *shortage) holdBack() {
	s.mu.Lock()
	rest := spaceRetry - time.Since(s.gaveUp)
	s.mu.Unlock()
	if rest > 0 {
		s.pause(rest)
	}
}
