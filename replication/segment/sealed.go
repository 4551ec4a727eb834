package segment

import (
	"encoding/binary"
	"errors"
	"fmt"

	storage "github.com/storaged/storaged"
)

// sealedWindowBytes is read at once of a sealed segment.
const sealedWindowBytes = 256 << 10

// maxHeadBytes is how much of an entry's data SealedRecord.Head has, if there is as much.
const maxHeadBytes = 2 << 10

// SealedRecord is a record of a sealed segment that may have blocks in it: an entry, or data that belongs to no log.
type SealedRecord struct {
	Group storage.GroupID
	// Data is the position of the first byte of the data, of which there are Bytes.
	Data  Position
	Bytes int
	// Head is the beginning of an entry's data; nil for other data. It is valid until the call returns.
	Head []byte
	// Header is what other data says of itself.
	Header DataHeader
}

// ReadSealed calls fn with the entries and the data of a sealed segment, in order, and ends with fn's error. It checks the headers of
// records and no payload: whoever takes blocks from there checks their sums. What cannot be read as a record is left out. Errors are
// those of ReadAt.
func (l *Log) ReadSealed(no SegmentNo, fn func(SealedRecord) error) error {
	info, why := l.sealed(no)
	if info.No == 0 {
		return storage.E("read segment", storage.KindNotFound, no.String(), errors.New(why))
	}
	r := sealedReader{l: l, no: no, end: info.UsedBytes, buf: make([]byte, min(sealedWindowBytes, info.UsedBytes))}
	for at := int64(segmentHeaderBytes); at+recordHeaderBytes <= r.end; {
		b, err := r.view(at, recordHeaderBytes)
		if err != nil {
			return err
		}
		h, ok := decodeRecordHeader(b, l.salt, PositionOf(no, uint32(at)))
		switch {
		case !ok || !h.known():
			at += recordAlignBytes
			continue
		case h.kind == kindSeal:
			return nil
		case h.kind == kindEntry || h.kind == kindData:
			if err := r.record(&h, at, fn); err != nil {
				return err
			}
		}
		at += int64(h.size())
	}
	return nil
}

// sealed returns a segment that is sealed; otherwise one without a number, and why.
func (l *Log) sealed(no SegmentNo) (info SegmentInfo, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.segments[no]
	if s == nil || s.state != SegmentSealed {
		return SegmentInfo{}, "it is not there, or not sealed"
	}
	return SegmentInfo{No: s.no, UsedBytes: int64(s.used), SizeBytes: int64(s.capacity), State: s.state}, ""
}

// sealedReader reads a segment from its beginning to its end, a window at a time.
type sealedReader struct {
	l    *Log
	no   SegmentNo
	end  int64
	buf  []byte
	from int64 // of the window buf[:n]
	n    int64
}

// view returns n bytes, or fewer at the segment's end. They are valid until the next call.
func (r *sealedReader) view(at, n int64) ([]byte, error) {
	n = min(n, r.end-at, int64(len(r.buf)))
	if at < r.from || at+n > r.from+r.n {
		r.from, r.n = at, min(int64(len(r.buf)), r.end-at)
		if err := r.l.ReadAt(PositionOf(r.no, uint32(at)), r.buf[:r.n]); err != nil {
			r.n = 0
			return nil, err
		}
	}
	return r.buf[at-r.from:][:n], nil
}

// record calls fn with a record whose header is valid.
func (r *sealedReader) record(h *recordHeader, at int64, fn func(SealedRecord) error) error {
	b, err := r.view(at+recordHeaderBytes, prefixBytes)
	if err != nil || len(b) < prefixBytes || h.payload < prefixBytes {
		return err
	}
	out := SealedRecord{Group: h.key.Group}
	skip := int64(prefixBytes)
	if h.kind == kindEntry {
		p, _ := decodeEntryPrefix(b)
		skip += int64(p.extensions)
	} else {
		out.Header = decodeDataPrefix(b)
		out.Header.Group, out.Header.Volume = h.key.Group, storage.VolumeID(h.index)
	}
	if skip > int64(h.payload) {
		return nil // the prefix is damaged
	}
	data := at + recordHeaderBytes + skip + int64(h.padding)
	out.Data, out.Bytes = PositionOf(r.no, uint32(data)), int(int64(h.payload)-skip)
	if h.kind == kindEntry {
		if out.Head, err = r.view(data, int64(min(out.Bytes, maxHeadBytes))); err != nil {
			return err
		}
	}
	return fn(out)
}

// decodeDataPrefix is the inverse of DataHeader.encodePrefix.
func decodeDataPrefix(b []byte) DataHeader {
	le := binary.LittleEndian
	return DataHeader{Epoch: storage.Epoch(le.Uint64(b)), Extent: storage.ExtentIndex(le.Uint32(b[8:])), FirstBlock: le.Uint16(b[12:])}
}

// Sealed returns a segment that could be recycled if no table referred to it. Otherwise the error says why not: KindConflict while the
// segment is free or open, a group needs it for recovery or for its log, or somebody reads it; KindNotFound if there is none.
func (l *Log) Sealed(no SegmentNo) (SegmentInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := l.unneededLocked(no)
	if err != nil {
		return SegmentInfo{}, err
	}
	return SegmentInfo{No: s.no, UsedBytes: int64(s.used), SizeBytes: int64(s.capacity), State: s.state}, nil
}

// unneededLocked returns a segment that neither the log needs nor anybody reads, or why it is none.
func (l *Log) unneededLocked(no SegmentNo) (*segmentFile, error) {
	s := l.segments[no]
	refuse := func(why string) (*segmentFile, error) {
		return nil, storage.E("recycle segment", storage.KindConflict, no.String(), errors.New(why))
	}
	switch {
	case s == nil:
		return nil, storage.E("recycle segment", storage.KindNotFound, no.String(), nil)
	case s.state != SegmentSealed:
		return refuse("it is not sealed")
	case s.pins > 0 || s.reads > 0:
		return refuse("it is being read")
	}
	for _, g := range l.groups {
		if why := g.needsLocked(no); why != "" {
			return refuse(fmt.Sprintf("group %s needs it: %s", g.key, why))
		}
	}
	return s, nil
}
