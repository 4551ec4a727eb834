package segment

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	storage "github.com/storaged/storaged"
)

// scanWindowBytes is read at once; a whole record must fit.
const scanWindowBytes = maxPayloadBytes + (1 << 20)

// verdict says what lies at a position.
type verdict uint8

const (
	nothing    verdict = iota // no valid header of this place
	tornRecord                // a valid header, and a payload that fails its checksum
	wholeRecord
)

// scan reads the log from start on, gives every record to its group, and returns where the log ends. clean says
// that nothing at all was found behind the end, so that appends may go on there.
//
// The first thing that is not a whole record ends the log if it lies at or after what is proven to have been durable.
// Before that it is damage; the scan then goes on behind it, so that only those replicas are given up that may
// have lost something.
func (r *recovery) scan(start Position) (end Position, clean bool, err error) {
	if len(r.found) == 0 {
		return 0, false, nil
	}
	searched := false
	for at := start; ; {
		s := r.segment(at.Segment())
		h, front, v, err := r.read(s, at)
		if err != nil {
			return 0, false, err
		}
		if v != nothing {
			if !h.known() {
				return 0, false, storage.E("read log", storage.KindUnsupported, at.String(),
					fmt.Errorf("record of kind %d, version %d; this program knows version %d", h.kind, h.version,
						paddedVersion))
			}
			r.proven = max(r.proven, h.durable)
		}
		if v == wholeRecord {
			r.apply(&h, front)
			at = h.next()
			continue
		}
		if !searched {
			searched = true
			if err := r.search(at); err != nil {
				return 0, false, err
			}
		}
		switch {
		case r.proven <= at && (s != nil || at != start):
			// Torn: no record tells that anything at or after this place was ever durable. The segment may be
			// missing: a seal can be durable before the next segment exists.
			return at, s != nil && r.cleanAt(s), nil
		case v == tornRecord:
			if g := r.l.groups[h.key]; g != nil && at >= g.need {
				r.hurtGroup(h.key, at, fmt.Sprintf("the payload of %s fails its checksum", h.describe()))
			}
			at = h.next()
		default:
			next, ok, err := r.nextValid(at)
			if err != nil {
				return 0, false, err
			}
			if !ok {
				r.proven = max(r.proven, at+1)
				r.hurtAll(at, r.proven)
				return at, false, nil
			}
			r.hurtAll(at, next)
			at = next
		}
	}
}

// next is where the record after this one begins.
func (h *recordHeader) next() Position {
	if h.kind == kindSeal {
		return PositionOf(SegmentNo(h.index), segmentHeaderBytes)
	}
	return h.position + Position(h.size())
}

func (h *recordHeader) describe() string {
	switch h.kind {
	case kindEntry:
		return fmt.Sprintf("entry %d of group %s", h.index, h.key)
	case kindData:
		return fmt.Sprintf("data of volume %d, kept for group %s", h.index, h.key.Group)
	default:
		return fmt.Sprintf("a record of kind %d", h.kind)
	}
}

func (r *recovery) segment(no SegmentNo) *scanSegment {
	i, ok := slices.BinarySearchFunc(r.found, no, func(s *scanSegment, no SegmentNo) int { return cmp.Compare(s.no, no) })
	if !ok {
		return nil
	}
	return r.found[i]
}

// cleanAt reports whether the log may go on in the segment in which it ended: nothing of its own was found behind
// the end, nothing is damaged and the file is whole.
func (r *recovery) cleanAt(s *scanSegment) bool {
	for _, x := range r.found {
		if x.own && x.no >= s.no {
			return false
		}
	}
	return len(r.hurt) == 0 && s.headerOK && s.sizeBytes >= int64(s.header.sizeBytes) &&
		int64(s.header.sizeBytes) == r.l.cfg.SegmentBytes
}

// read judges what lies at a position, and returns the payload of a whole record without its data. s may be nil.
func (r *recovery) read(s *scanSegment, at Position) (h recordHeader, front []byte, v verdict, err error) {
	if s == nil || at.Offset()%recordAlignBytes != 0 || at.Offset() < segmentHeaderBytes ||
		int64(at.Offset())+recordHeaderBytes > s.sizeBytes {
		return recordHeader{}, nil, nothing, nil
	}
	b, err := r.view(s, int64(at.Offset()), recordHeaderBytes)
	if err != nil {
		return recordHeader{}, nil, nothing, err
	}
	h, ok := decodeRecordHeader(b, r.l.salt, at)
	if !ok {
		return recordHeader{}, nil, nothing, nil
	}
	if !h.known() {
		return h, nil, tornRecord, nil // whoever asks refuses the log, or goes on behind it
	}
	b, err = r.view(s, int64(at.Offset()), recordHeaderBytes+h.bodyBytes())
	if err != nil {
		return recordHeader{}, nil, nothing, err
	}
	front, data, ok := h.parts(b[recordHeaderBytes:])
	if !ok || crc32.Update(checksum(front), castagnoli, data) != h.sum {
		return h, nil, tornRecord, nil
	}
	return h, front, wholeRecord, nil
}

// search looks at everything behind the place for valid headers: their durable marks prove what was durable, and
// their segments must not be written under the same number again.
func (r *recovery) search(from Position) error {
	for _, s := range r.found {
		if s.no < from.Segment() {
			continue
		}
		at := PositionOf(s.no, segmentHeaderBytes)
		if s.no == from.Segment() {
			at = from
		}
		for {
			h, ok, err := r.nextInSegment(s, at)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			s.own = true
			r.proven = max(r.proven, h.durable)
			at = h.position + Position(h.size())
		}
		// A segment is used only after the one before it is full. One that is whole and holds nothing is the
		// last that can have been written to.
		if s.no > from.Segment() && !s.own && s.headerOK && s.sizeBytes >= int64(s.header.sizeBytes) {
			return nil
		}
	}
	return nil
}

// nextValid finds the next valid header at or after the place, in its segment or a later one.
func (r *recovery) nextValid(from Position) (Position, bool, error) {
	for _, s := range r.found {
		if s.no < from.Segment() {
			continue
		}
		h, ok, err := r.nextInSegment(s, max(from, PositionOf(s.no, segmentHeaderBytes)))
		if ok || err != nil {
			return h.position, ok, err
		}
	}
	return 0, false, nil
}

// nextInSegment finds the next valid header of the segment at or after the place.
func (r *recovery) nextInSegment(s *scanSegment, from Position) (recordHeader, bool, error) {
	offset := (int64(from.Offset()) + recordAlignBytes - 1) &^ (recordAlignBytes - 1)
	for ; offset+recordHeaderBytes <= s.sizeBytes; offset += recordAlignBytes {
		b, err := r.view(s, offset, recordHeaderBytes)
		if err != nil {
			return recordHeader{}, false, err
		}
		if h, ok := decodeRecordHeader(b, r.l.salt, PositionOf(s.no, uint32(offset))); ok {
			return h, true, nil
		}
	}
	return recordHeader{}, false, nil
}

// view returns n bytes of the segment; what lies behind the end of the file is zero. It is valid until the next call. What the window
// has of them already is not read again.
func (r *recovery) view(s *scanSegment, offset int64, n int) ([]byte, error) {
	end := r.bufAt + int64(len(r.buf))
	inside := r.bufSeg == s && offset >= r.bufAt
	if inside && offset+int64(n) <= end {
		return r.buf[offset-r.bufAt:][:n:n], nil
	}
	if err := r.open(s); err != nil {
		return nil, err
	}
	if r.buf == nil {
		r.buf = make([]byte, min(scanWindowBytes, int(r.l.cfg.SegmentBytes)+maxPayloadBytes))
	}
	kept := 0
	if inside && offset < end {
		kept = copy(r.buf, r.buf[offset-r.bufAt:])
	}
	if err := r.readUpTo(r.file, r.buf[kept:], offset+int64(kept)); err != nil {
		r.bufSeg = nil
		return nil, err
	}
	r.bufSeg, r.bufAt = s, offset
	return r.buf[:n:n], nil
}

// open makes r.file the file of the segment.
func (r *recovery) open(s *scanSegment) error {
	if r.fileSeg == s {
		return nil
	}
	if err := r.closeFile(); err != nil {
		return err
	}
	f, err := r.l.cfg.FS.Open(r.l.path(segmentName(s.no)), vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	r.file, r.fileSeg = f, s
	return nil
}

func (r *recovery) closeFile() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file, r.fileSeg = nil, nil
	return f.Close()
}

// apply gives a record to its group. front is its payload up to the data.
func (r *recovery) apply(h *recordHeader, front []byte) {
	r.last = h.kind
	g := r.l.groups[h.key]
	if g == nil || h.position < g.need || g.damage != nil {
		return
	}
	switch h.kind {
	case kindEntry:
		r.applyEntry(g, h, front)
	case kindTruncate:
		if _, ok := r.gaps[g.key]; ok && h.index <= g.lastLocked()+1 {
			delete(r.gaps, g.key) // what was missing is truncated
		}
		g.truncateLocked(h.index)
	case kindReset:
		delete(r.gaps, g.key)
		g.clearEntriesLocked()
		g.base = g.applied
		if h.index > g.applied {
			r.hurtGroup(g.key, h.position, fmt.Sprintf(
				"the log was reset at entry %d, but the checkpoint holds only %d", h.index, g.applied))
		}
	}
}

func (r *recovery) applyEntry(g *GroupLog, h *recordHeader, front []byte) {
	// Below the checkpoint; or of a history that the checkpoint, which came from a manifest, has replaced.
	if h.index <= g.applied || h.term < g.appliedTerm {
		return
	}
	if _, ok := r.gaps[g.key]; ok {
		return
	}
	switch next := g.lastLocked() + 1; {
	case h.index > next:
		r.gaps[g.key] = h.position
		return
	case h.index < next:
		// The same entry once more (Copies). What was read lies behind where recovery begins, so it stays. Copies may be there in part:
		// the log begins at its first entry only as long as its entries ascend.
		if e := g.entryLocked(h.index); e != nil && e.term == h.term && e.sum == h.sum {
			return
		}
		r.hurtGroup(g.key, h.position, fmt.Sprintf("entry %d is there twice", h.index))
		return
	}
	extensions := uint32(len(front) - prefixBytes)
	g.entries = append(g.entries, entry{term: h.term, at: h.position, extBytes: extensions, sum: h.sum, padding: h.padding,
		kind: front[0], dataBytes: h.payload - prefixBytes - extensions})
}

// closeGaps gives up the groups whose entries do not continue each other.
func (r *recovery) closeGaps() {
	for key, at := range r.gaps {
		r.hurtGroup(key, at, fmt.Sprintf("entry %d is missing", r.l.groups[key].lastLocked()+1))
	}
}

// hurtAll gives up the groups that may have records in the unreadable range.
func (r *recovery) hurtAll(from, to Position) {
	for key, g := range r.l.groups {
		if g.need < to {
			r.hurtGroup(key, from, fmt.Sprintf("the log is unreadable from %s to %s", from, to))
		}
	}
}

func (r *recovery) hurtGroup(key GroupKey, at Position, reason string) {
	g := r.l.groups[key]
	if g == nil || g.damage != nil {
		return
	}
	delete(r.gaps, key)
	g.damage = &Damage{Key: key, At: at, Reason: reason}
	r.hurt[key] = true
	r.l.damaged = append(r.l.damaged, *g.damage)
	r.l.log.Error("segment log is damaged; the replica must be replaced", "dir", r.l.cfg.Dir, "group", key.String(),
		"position", at.String(), "reason", reason)
}

// resume makes the log ready for appends. It goes on where the log ended only if nothing was found behind the end.
// Otherwise the segment is sealed there and a new one begun: what lies behind the end can then never be taken for a
// part of the log again. All later segments get new numbers before they are used, for the same reason.
func (r *recovery) resume(end Position, clean bool) error {
	l := r.l
	l.nextNo = max(l.nextNo, end.Segment()+1, r.proven.Segment()+1)
	for _, s := range r.found {
		if s.no > end.Segment() && !l.cfg.InUse(s.no) {
			delete(l.segments, s.no)
			l.recycled = append(l.recycled, s.segmentFile)
		}
	}
	if err := r.closeFile(); err != nil {
		return err
	}
	if clean {
		return r.continueAt(end)
	}
	return r.beginSegment(end)
}

func (r *recovery) continueAt(end Position) error {
	l := r.l
	s := l.segments[end.Segment()]
	f, err := l.cfg.FS.OpenReadWrite(l.path(segmentName(s.no)), writeCategory)
	if err != nil {
		return err
	}
	s.file, s.state, s.claimed, s.used = f, SegmentOpen, true, 0
	s.capacity = uint32(l.cfg.SegmentBytes)
	l.current, l.offset = s, end.Offset()
	l.durable.Store(uint64(end))
	if r.last == kindClosing || end.Offset() == segmentHeaderBytes {
		l.marked = end
	}
	return nil
}

func (r *recovery) beginSegment(end Position) error {
	l := r.l
	no := l.nextNo
	missing := end != 0 && l.segments[end.Segment()] == nil && r.segment(end.Segment()) == nil && r.proven <= end
	if missing {
		no = end.Segment() // as the seal before it says; nothing was ever written under this number
	} else {
		l.nextNo++
	}
	s := &segmentFile{no: no, capacity: uint32(l.cfg.SegmentBytes), claimed: true}
	l.segments[s.no] = s
	l.current, l.offset = s, segmentHeaderBytes
	l.durable.Store(uint64(l.endLocked()))
	l.marked = l.endLocked()
	f, err := l.make(s, l.takeRecycledLocked()) // nobody else has the log yet
	if err != nil {
		return err
	}
	s.file, s.ready, s.state = f, true, SegmentOpen
	if end == 0 || missing || r.proven > end {
		return nil // nothing to seal; or damaged there, and that must be seen again at the next start
	}
	return r.seal(end, s.no)
}

// seal ends the segment in which the log ended, durably.
func (r *recovery) seal(end Position, next SegmentNo) error {
	l := r.l
	f, err := l.cfg.FS.OpenReadWrite(l.path(segmentName(end.Segment())), writeCategory)
	if err != nil {
		return err
	}
	h := recordHeader{kind: kindSeal, position: end, index: uint64(next), durable: end}
	b := make([]byte, recordHeaderBytes)
	h.encode(b, l.salt)
	_, err = f.WriteAt(b, int64(end.Offset()))
	if err == nil {
		err = l.preparing.Sync(f)
	}
	return errors.Join(err, f.Close())
}
