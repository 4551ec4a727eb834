package segment

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
)

const (
	segmentSuffix   = ".seg"
	temporarySuffix = ".tmp"
	// writeCategory tells the file system's statistics who writes.
	writeCategory vfs.DiskWriteCategory = "segment-log"
)

// segmentFile is one segment. Its fields are guarded by Log.mu, except that whoever is the only owner needs no lock:
// Open, the preparer while the segment is not ready, the committer for file while the segment is open.
type segmentFile struct {
	no       SegmentNo
	capacity uint32 // bytes that may be used; a multiple of a page
	used     uint32 // bytes in use once sealed
	state    SegmentState
	ready    bool // may be written
	claimed  bool // the log has rolled into it
	file     vfs.File
	reads    int // reads going on
	pins     int
}

func (s *segmentFile) closeFile() error {
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	return f.Close()
}

// segmentName is the name of the segment's file. The name, not the header, says which number a file has: renaming
// is atomic, so a file never is between two numbers.
func segmentName(no SegmentNo) string { return fmt.Sprintf("%010d%s", uint32(no), segmentSuffix) }

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(name string) (SegmentNo, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return SegmentNo(n), err == nil && n > 0
}

func (l *Log) path(name string) string { return l.cfg.FS.PathJoin(l.cfg.Dir, name) }

// syncDir syncs the log's directory. It is for Open, then for the preparer.
func (l *Log) syncDir() error { return l.preparing.SyncDir(l.cfg.FS, l.cfg.Dir) }

// writeHeader writes the header block of a segment. It is not synced.
func (l *Log) writeHeader(f vfs.File, no SegmentNo, capacity uint32, logStart Position) error {
	h := segmentHeader{no: no, store: l.cfg.Store, stream: StreamHot, sizeBytes: capacity, logStart: logStart}
	block := make([]byte, segmentHeaderBytes)
	h.encode(block)
	_, err := f.WriteAt(block, 0)
	return err
}

// Segments returns every segment, in no particular order.
func (l *Log) Segments() []SegmentInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	infos := make([]SegmentInfo, 0, len(l.segments)+len(l.recycled))
	for _, s := range l.segments {
		used := s.used
		if s == l.current {
			used = l.offset
		}
		state := s.state
		if s.claimed || s == l.current {
			state = max(state, SegmentOpen)
		}
		if state == SegmentFree {
			used = 0
		}
		infos = append(infos, SegmentInfo{No: s.no, UsedBytes: int64(used), SizeBytes: int64(s.capacity), State: state})
	}
	for _, s := range l.recycled {
		infos = append(infos, SegmentInfo{No: s.no, SizeBytes: int64(s.capacity), State: SegmentFree})
	}
	return infos
}

// Space returns the bytes of segments that hold records, and of those that exist and are free.
func (l *Log) Space() (usedBytes, freeSegmentBytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.usedBytes, l.freeBytes
}

// AppendedBytes returns how much was appended since the log was opened. It costs nothing, so that what Space said a moment ago can be
// corrected by what came since.
func (l *Log) AppendedBytes() int64 { return l.appended.Load() }

// walkSpaceLocked is what Space counts, from all segments.
func (l *Log) walkSpaceLocked() (used, free int64) {
	for _, s := range l.segments {
		switch {
		case s.state != SegmentFree || s.claimed || s == l.current:
			used += int64(s.capacity)
		case s.ready:
			free += int64(s.capacity)
		}
	}
	for _, s := range l.recycled {
		free += int64(s.capacity)
	}
	return used, free
}

// Pin keeps the segment from being recycled until unpin is called. Calling unpin again does nothing. Pinning a
// segment that is not there does nothing.
func (l *Log) Pin(no SegmentNo) (unpin func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.segments[no]
	if s == nil {
		return func() {}
	}
	s.pins++
	done := false
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !done {
			done = true
			s.pins--
		}
	}
}

// Recycle lets the segment's file be used again, unless a table refers to it: inUse says so. It is refused with KindConflict
// while the segment is free or open, a group needs it for recovery or for its log, or it is pinned; with KindNotFound if there is
// no such segment.
//
// inUse is asked at the last moment, when nothing else is in the way, under the lock of the log. It must not call back, nor wait
// for anybody who does. Asked before, it may not know yet of an entry that is applied and checkpointed right after: from then on
// the log does not need the segment, and a table does.
func (l *Log) Recycle(no SegmentNo, inUse func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		return l.failure
	}
	s, err := l.unneededLocked(no)
	if err != nil {
		return err
	}
	if inUse() {
		return storage.E("recycle segment", storage.KindConflict, no.String(), errors.New("a table refers to it"))
	}
	for _, g := range l.groups {
		g.dropThroughLocked(no)
	}
	delete(l.segments, no)
	// From here on its file belongs to the preparer: nobody else may close it to keep within MaxOpenFiles.
	l.openLRU = slices.DeleteFunc(l.openLRU, func(o *segmentFile) bool { return o == s })
	l.recycled = append(l.recycled, s)
	l.usedBytes -= int64(s.capacity)
	l.freeBytes += int64(s.capacity)
	l.lack = lackNone
	l.prepare.Signal()
	return nil
}
