package segment

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
)

// Open opens the log in cfg.Dir, or makes one. It reads everything from the smallest GroupStart.From on and checks
// it. A damaged log opens; see Damaged. KindInvalid for a bad configuration, KindConflict for segments of another
// store, KindUnsupported for segments of a newer version, KindIO, KindNoSpace.
func Open(cfg Config) (*Log, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, salt: headerSalt(cfg.Store), log: cfg.Logger, groups: make(map[GroupKey]*GroupLog), holdBytes: cfg.HoldBytes,
		segments: make(map[SegmentNo]*segmentFile), nextNo: 1, stop: make(chan struct{}), hurry: make(chan struct{}),
		begun: time.Now()}
	l.disk = diskio.NewReader(l.log)
	l.committed.L, l.room.L, l.prepare.L, l.unread.L = &l.mu, &l.mu, &l.mu, &l.mu
	for _, s := range cfg.Groups {
		l.groups[s.Key] = newGroupLog(l, s)
	}
	r := &recovery{l: l}
	err := r.run()
	err = errors.Join(err, r.closeFile())
	if err == nil {
		l.metrics, err = newMetrics(l)
	}
	if err != nil {
		for _, s := range l.segments {
			_ = s.closeFile()
		}
		l.disk.Close()
		l.preparing.Close()
		return nil, openError(cfg.Dir, err)
	}
	l.usedBytes, l.freeBytes = l.walkSpaceLocked()
	l.background.Add(2)
	c := &committer{l: l}
	c.writer.AIO = &c.sync
	go c.run()
	go l.preparer()
	return l, nil
}

func openError(dir string, err error) error {
	kind := storage.KindIO
	var e *storage.Error
	switch {
	case errors.As(err, &e):
		kind = e.Kind
	case diskio.NoSpace(err):
		kind = storage.KindNoSpace
	}
	return storage.E("open segment log", kind, dir, err)
}

// recovery is the state of opening a log. It is used by one goroutine, before the log is shared.
type recovery struct {
	l     *Log
	found []*scanSegment // ascending
	// beginning is what the headers that were read say of where the log began when they were written.
	beginning Position
	proven    Position // everything before was durable once: the highest durable mark seen, or From of a group
	hurt      map[GroupKey]bool
	gaps      map[GroupKey]Position // entries after this place do not continue the log, so far

	buf    []byte // window of the file being read
	bufSeg *scanSegment
	bufAt  int64

	file    vfs.File // of fileSeg
	fileSeg *scanSegment
	last    recordKind // of the last record of the log
}

// scanSegment is a segment file as it was found.
type scanSegment struct {
	*segmentFile
	sizeBytes int64
	header    segmentHeader
	headerOK  bool // the header is valid and of this number
	own       bool // a valid record of this number was seen
}

func (r *recovery) run() error {
	r.hurt = make(map[GroupKey]bool)
	r.gaps = make(map[GroupKey]Position)
	if err := r.list(); err != nil {
		return err
	}
	if err := r.syncFound(); err != nil {
		return err
	}
	start := r.start()
	end, clean, err := r.scan(start)
	if err != nil {
		return err
	}
	r.closeGaps()
	return r.resume(end, clean)
}

// list makes the directory, removes unfinished segments and lists the others.
func (r *recovery) list() error {
	l, fs := r.l, r.l.cfg.FS
	if err := fs.MkdirAll(l.cfg.Dir, 0o755); err != nil {
		return err
	}
	if err := l.preparing.SyncDir(fs, fs.PathDir(l.cfg.Dir)); err != nil {
		return err
	}
	names, err := fs.List(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, segmentSuffix+temporarySuffix) {
			if err := fs.Remove(l.path(name)); err != nil {
				return err
			}
		}
	}
	if err := r.listFound(); err != nil {
		return err
	}
	if err := r.readHeaders(); err != nil {
		return err
	}
	return l.syncDir()
}

// readHeaders reads the headers of the segments that may be scanned, the latest first. Those before all that is needed may be very
// many: only their sizes are looked at. Nothing that a header says matters there: a log begins in its segment or before.
func (r *recovery) readHeaders() error {
	for i := len(r.found) - 1; i >= 0; i-- {
		s := r.found[i]
		if s.no >= r.start().Segment() {
			if err := r.openFound(s); err != nil {
				return err
			}
			continue
		}
		info, err := r.l.cfg.FS.Stat(r.l.path(segmentName(s.no)))
		if err != nil {
			return err
		}
		s.sized(info.Size())
	}
	return nil
}

// listFound finds the segments. It reads and writes nothing.
func (r *recovery) listFound() error {
	l := r.l
	names, err := l.cfg.FS.List(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		no, ok := parseSegmentName(name)
		if !ok {
			continue
		}
		s := &scanSegment{segmentFile: &segmentFile{no: no, state: SegmentSealed, ready: true}}
		l.segments[no] = s.segmentFile
		r.found = append(r.found, s)
		l.nextNo = max(l.nextNo, no+1)
	}
	slices.SortFunc(r.found, func(a, b *scanSegment) int { return cmp.Compare(a.no, b.no) })
	return nil
}

// sized notes the size of the file.
func (s *scanSegment) sized(n int64) {
	s.sizeBytes = n
	s.capacity = uint32(min(n, 1<<30))
	s.used = s.capacity
}

// openFound reads the header of a segment.
func (r *recovery) openFound(s *scanSegment) error {
	l, name := r.l, segmentName(s.no)
	f, err := l.cfg.FS.Open(l.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	s.sized(info.Size())
	var block [segmentHeaderUsed]byte
	if err := r.readUpTo(f, block[:], 0); err != nil {
		return err
	}
	h, ok := decodeSegmentHeader(block[:])
	switch {
	case ok && h.store != l.cfg.Store:
		return storage.E("open segment", storage.KindConflict, l.path(name),
			fmt.Errorf("it belongs to store %s, not to %s", h.store, l.cfg.Store))
	case ok && h.version != segmentVersion:
		return storage.E("open segment", storage.KindUnsupported, l.path(name),
			fmt.Errorf("its format has version %d; this program knows %d", h.version, segmentVersion))
	}
	if s.header, s.headerOK = h, ok && h.no == s.no; s.headerOK {
		r.beginning = max(r.beginning, h.logStart)
	}
	return nil
}

// readUpTo fills buf; what lies behind the end of the file is zero.
func (r *recovery) readUpTo(f vfs.File, buf []byte, offset int64) error {
	n, err := r.l.disk.ReadAt(f, buf, offset)
	if errors.Is(err, io.EOF) {
		clear(buf[n:])
		return nil
	}
	return err
}

// start is where the scan begins: the smallest position that a group needs. Its group's zero means the beginning of
// the log, which the headers know.
func (r *recovery) start() Position {
	start := ^Position(0)
	for _, g := range r.l.groups {
		r.proven = max(r.proven, g.need)
		start = min(start, cmp.Or(g.need, r.beginning))
	}
	if len(r.l.groups) == 0 {
		start = r.beginning
	}
	if start.Segment() == 0 && len(r.found) > 0 {
		start = PositionOf(r.found[0].no, segmentHeaderBytes)
	}
	return start
}

// syncFound syncs the segments that will be scanned: what is read must be durable before it is reported so, even if
// the process that wrote it was killed before it could sync. Then the pages are dropped from the page cache where
// possible, so that what is read is what the disk holds.
func (r *recovery) syncFound() error {
	start := r.start()
	for _, s := range r.found {
		if s.no < start.Segment() {
			continue
		}
		f, err := r.l.cfg.FS.OpenReadWrite(r.l.path(segmentName(s.no)), writeCategory)
		if err != nil {
			return err
		}
		if err = r.l.preparing.Sync(f); err == nil && f.Fd() != vfs.InvalidFd {
			_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice only
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
