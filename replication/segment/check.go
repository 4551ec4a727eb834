package segment

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
)

// Reader reads the segments of a stopped log. It writes nothing. It is not safe for concurrent use.
type Reader struct {
	r *recovery
}

// Check reads every record of a stopped log, writes nothing, and tells where and in words what is wrong: unreadable places, and
// payloads that fail their checksum. What lies behind the end of the log is not wrong: a torn tail is ordinary. The
// Reader reads the blocks that tables refer to. KindNotFound if there is no log, KindConflict if it belongs to another
// store, KindUnsupported for a newer format, KindIO.
func Check(fs vfs.FS, dir string, store storage.StoreID, finding func(at Position, text string)) (*Reader, error) {
	cfg := Config{FS: fs, Dir: dir, Store: store}
	cfg.setDefaults()
	l := &Log{cfg: cfg, salt: headerSalt(store), log: cfg.Logger, nextNo: 1, segments: make(map[SegmentNo]*segmentFile),
		disk: diskio.NewReader(cfg.Logger)}
	l.disk.Block()
	c := &checker{recovery: recovery{l: l}}
	if err := c.listFound(); err != nil {
		return nil, openError(dir, err)
	}
	for _, s := range c.found {
		if err := c.openFound(s); err != nil {
			return nil, openError(dir, err)
		}
	}
	if len(c.found) == 0 {
		return nil, storage.E("check segment log", storage.KindNotFound, dir, errors.New("there is no segment in it"))
	}
	for _, s := range c.found {
		if err := c.walk(s); err != nil {
			return nil, openError(dir, errors.Join(err, c.closeFile()))
		}
	}
	for _, f := range c.findings {
		if f.at < c.proven && !c.skipped(f.at.Segment()) {
			finding(f.at, f.text)
		}
	}
	c.buf, c.bufSeg = nil, nil
	return &Reader{&c.recovery}, nil
}

// checker walks over all segments. What it finds counts only if it lies before what is proven to have been durable,
// which is known at the end.
//
// A log whose end was torn goes on in a segment with a number above all others (resume). Those that were made ready before, and may hold parts of
// what was torn, keep their numbers until they are used again. They are no part of the log: the seal before them says so.
type checker struct {
	recovery
	findings []checkFinding
	skips    []sealOf
}

// sealOf says after which segment the log goes on in which.
type sealOf struct{ from, to SegmentNo }

// skipped reports whether the log goes on behind a segment without having been in it.
func (c *checker) skipped(no SegmentNo) bool {
	return slices.ContainsFunc(c.skips, func(s sealOf) bool { return s.from < no && no < s.to })
}

type checkFinding struct {
	at   Position
	text string
}

func (c *checker) find(at Position, format string, args ...any) {
	c.findings = append(c.findings, checkFinding{at, fmt.Sprintf("segment %s, byte %d: ", at.Segment(), at.Offset()) +
		fmt.Sprintf(format, args...)})
}

// walk walks over one segment, up to its seal or its end.
func (c *checker) walk(s *scanSegment) error {
	if !s.headerOK && s.header.no == 0 { // one of another number is whole: a power cut ended the recycling
		c.find(PositionOf(s.no, 0), "the header of the segment is damaged; its records can be read without it")
	}
	for at := PositionOf(s.no, segmentHeaderBytes); int64(at.Offset())+recordHeaderBytes <= s.sizeBytes; {
		h, _, v, err := c.read(s, at)
		if err != nil {
			return err
		}
		if v == nothing {
			next, ok, err := c.nextInSegment(s, at)
			if err != nil {
				return err
			}
			if !ok {
				c.find(at, "there is no valid record from here to the end of the segment")
				return nil
			}
			c.find(at, "%d bytes are not readable as records", next.position-at)
			at = next.position
			continue
		}
		c.proven = max(c.proven, h.durable)
		switch {
		case !h.known():
			return storage.E("check segment", storage.KindUnsupported, at.String(), fmt.Errorf(
				"record of kind %d, version %d; this program knows version %d", h.kind, h.version, paddedVersion))
		case v == tornRecord:
			c.find(at, "the payload of %s fails its checksum", h.describe())
		case h.kind == kindSeal:
			c.skips = append(c.skips, sealOf{s.no, SegmentNo(h.index)})
			return nil
		}
		at += Position(h.size())
	}
	return nil
}

// ReadAt fills buf with the bytes at p. The caller checks what it got. KindNotFound if there is no such segment, KindIO.
func (r *Reader) ReadAt(p Position, buf []byte) error {
	s := r.r.segment(p.Segment())
	if s == nil {
		return storage.E("read segment", storage.KindNotFound, p.String(), nil)
	}
	err := r.r.open(s)
	if err == nil {
		err = r.r.readUpTo(r.r.file, buf, int64(p.Offset()))
	}
	if err != nil {
		return storage.E("read segment", storage.KindIO, p.String(), err)
	}
	return nil
}

// Close releases the files.
func (r *Reader) Close() error { return r.r.closeFile() }
