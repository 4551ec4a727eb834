package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	storage "github.com/storaged/storaged"
)

const (
	// sealedWindowBytes is read at once of a sealed segment.
	sealedWindowBytes = 256 << 10
	// maxUnreadablePages bounds the pages of a segment that the disk may not give back until the rest of it is not tried either: each
	// may take the disk seconds.
	maxUnreadablePages = 64
)

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
// records and no payload: whoever takes blocks from there checks their sums. What cannot be read, or not as a record, is left out. Errors
// are those of ReadAt; KindIO means that the disk gives back too little of the segment to go on.
func (l *Log) ReadSealed(no SegmentNo, fn func(SealedRecord) error) error {
	r, err := l.sealedReader(no, sealedWindowBytes)
	if err != nil {
		return err
	}
	return r.each(nil, func(h *recordHeader, at int64) error {
		if h.kind != kindEntry && h.kind != kindData {
			return nil
		}
		return r.record(h, at, fn)
	})
}

// Checked is what CheckSealed has found in a segment.
type Checked struct {
	// Bytes were read. DamagedRecords have a header that is whole and a payload that fails its checksum, or cannot be read. StrayBytes are
	// no records.
	Bytes, StrayBytes int64
	DamagedRecords    int
}

// Sound reports whether the segment is as it was written.
func (c Checked) Sound() bool { return c.DamagedRecords == 0 && c.StrayBytes == 0 }

// CheckSealed reads a sealed segment from the disk, whatever memory has of it, and checks each record. It calls fn with the entries and the
// data: with the bytes of the record's data if these are sound, and with nil if not; they are valid until fn returns. Before bytes are read
// it calls wait with how many, if wait is not nil. It ends with the error of either. What it has read does not stay in the kernel's
// memory. Errors are those of ReadSealed.
func (l *Log) CheckSealed(no SegmentNo, wait func(bytes int64) error, fn func(r SealedRecord, data []byte) error) (c Checked, err error) {
	r, err := l.sealedReader(no, int64(sealedWindowBytes+alignedBytes(maxPayloadBytes+pageBytes)))
	if err != nil {
		return c, err
	}
	r.wait = wait
	l.dropCached(no, 0, 0) // memory may be right where the disk is not
	defer l.dropCached(no, 0, 0)
	err = r.each(&c.StrayBytes, func(h *recordHeader, at int64) error {
		body, sound, err := r.body(h, at)
		if err != nil {
			return err
		}
		if !sound {
			c.DamagedRecords++
		}
		if h.kind != kindEntry && h.kind != kindData {
			return nil
		}
		return r.record(h, at, func(s SealedRecord) error {
			if !sound {
				return fn(s, nil)
			}
			return fn(s, body[int64(s.Data.Offset())-at-recordHeaderBytes:])
		})
	})
	c.Bytes = r.bytes
	return c, err
}

// sealedReader returns a reader of a sealed segment that reads so many bytes ahead.
func (l *Log) sealedReader(no SegmentNo, window int64) (*sealedReader, error) {
	info, why := l.sealed(no)
	if info.No == 0 {
		return nil, storage.E("read segment", storage.KindNotFound, no.String(), errors.New(why))
	}
	return &sealedReader{l: l, no: no, end: info.UsedBytes, buf: make([]byte, min(window, info.UsedBytes))}, nil
}

// each calls fn with the records of the segment up to its seal, which is one of them, and counts in stray, if it is not nil, the bytes
// that are none.
func (r *sealedReader) each(stray *int64, fn func(h *recordHeader, at int64) error) error {
	for at := int64(segmentHeaderBytes); at+recordHeaderBytes <= r.end; {
		b, err := r.view(at, recordHeaderBytes)
		if err != nil {
			return err
		}
		h, ok := decodeRecordHeader(b, r.l.salt, PositionOf(r.no, uint32(at)))
		if !ok || !h.known() {
			at += recordAlignBytes
			if stray != nil {
				*stray += recordAlignBytes
			}
			continue
		}
		if err := fn(&h, at); err != nil || h.kind == kindSeal {
			return err
		}
		at += int64(h.size())
	}
	return nil
}

// body returns what follows a record's header, and whether it has the payload's checksum. It is valid until the next call.
func (r *sealedReader) body(h *recordHeader, at int64) (body []byte, sound bool, err error) {
	n := int64(h.bodyBytes())
	body, err = r.view(at+recordHeaderBytes, n)
	if err != nil {
		return nil, false, err
	}
	front, data, ok := h.parts(body)
	sound = ok && int64(len(body)) == n && crc32.Update(checksum(front), castagnoli, data) == h.sum
	for _, page := range r.unreadable {
		sound = sound && (page+pageBytes <= at || page >= at+recordHeaderBytes+n)
	}
	return body, sound, nil
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
	wait func(bytes int64) error // before they are read; may be nil
	buf  []byte
	from int64 // of the window buf[:n]
	n    int64

	bytes      int64   // read
	unreadable []int64 // pages that the disk did not give back; they read as zeroes, which are no record
}

// view returns n bytes, or fewer at the segment's end. They are valid until the next call.
func (r *sealedReader) view(at, n int64) ([]byte, error) {
	n = min(n, r.end-at, int64(len(r.buf)))
	switch {
	case at < r.from || at > r.from+r.n:
		r.from, r.n = at, 0
	case at+n > r.from+int64(len(r.buf)):
		r.n = int64(copy(r.buf, r.buf[at-r.from:r.n]))
		r.from = at
	}
	for at+n > r.from+r.n {
		next := r.from + r.n
		part := r.buf[r.n:min(r.n+sealedWindowBytes, int64(len(r.buf)), r.end-r.from)]
		if r.wait != nil {
			if err := r.wait(int64(len(part))); err != nil {
				return nil, err
			}
		}
		if err := r.read(next, part); err != nil {
			return nil, err
		}
		r.n += int64(len(part))
		r.bytes += int64(len(part))
	}
	return r.buf[at-r.from:][:n], nil
}

// read reads bytes from the disk, page by page where it does not give back all.
func (r *sealedReader) read(at int64, p []byte) error {
	err := r.l.ReadStored(PositionOf(r.no, uint32(at)), p)
	if err == nil || storage.KindOf(err) != storage.KindIO {
		return err
	}
	for len(p) > 0 {
		n := min(pageBytes-at%pageBytes, int64(len(p)))
		switch err := r.l.ReadStored(PositionOf(r.no, uint32(at)), p[:n]); {
		case storage.KindOf(err) == storage.KindIO && len(r.unreadable) < maxUnreadablePages:
			r.unreadable = append(r.unreadable, at-at%pageBytes)
			clear(p[:n])
		case err != nil:
			return err
		}
		at, p = at+n, p[n:]
	}
	return nil
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
