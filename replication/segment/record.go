package segment

import (
	"encoding/binary"
	"hash/crc32"

	storage "github.com/storaged/storaged"
)

// Sizes of the format, in bytes; docs/format/segment.md has the tables.
const (
	recordHeaderBytes  = 64
	recordAlignBytes   = 64
	prefixBytes        = 16   // of the payload of entries and data
	segmentHeaderBytes = 4096 // the first record's offset; a whole page, so that it is never rewritten with records
	pageBytes          = 4096
	// maxPayloadBytes bounds one record: the data of one entry (storage.MaxEntryPayloadBytes and the header of the
	// operation) with room to spare. It is checked before anything is allocated or read for a record.
	maxPayloadBytes = 2 << 20

	recordMagic = 0x52474553 // "SEGR"
	// recordVersion is that of records without padding, paddedVersion that of those with.
	recordVersion = 1
	paddedVersion = 2
)

// recordKind is the type of a record.
type recordKind uint8

const (
	kindEntry    recordKind = 1 // one entry; payload: prefix, extensions, data
	kindTruncate recordKind = 2 // entries at and above index are gone
	kindReset    recordKind = 3 // all entries are gone; the next one is index+1
	kindSeal     recordKind = 4 // end of the segment; index is the number of the next one
	kindClosing  recordKind = 5 // the log became idle; says by its durable mark what was durable

	kindData recordKind = 6 // blocks that belong to no log; payload: prefix, blocks

	kindEnd = kindData + 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordHeader is the decoded header of a record. The position is that of the header's first byte.
type recordHeader struct {
	kind        recordKind
	version     uint8
	payload     uint32 // bytes of payload, without the padding
	padding     uint16 // zeroes between the extensions and the data, < pageBytes
	position    Position
	key         GroupKey
	term, index uint64
	durable     Position // everything before was durable when this record was written
	sum         uint32   // crc32c of the payload
}

// alignedBytes is the size of a record with n bytes of payload, padding included, with its header and what fills it up.
func alignedBytes(payload int) int {
	return (recordHeaderBytes + payload + recordAlignBytes - 1) &^ (recordAlignBytes - 1)
}

// headerSalt is what the header checksums of a store's records start from, so that records of another store, or
// forged in the data of a volume, are not mistaken for its own.
func headerSalt(store storage.StoreID) uint32 { return crc32.Checksum(store[:], castagnoli) }

// encode writes the header to b[:recordHeaderBytes].
func (h *recordHeader) encode(b []byte, salt uint32) {
	_ = b[recordHeaderBytes-1]
	le := binary.LittleEndian
	le.PutUint32(b[0:], recordMagic)
	b[4] = recordVersion
	if h.padding > 0 {
		b[4] = paddedVersion
	}
	b[5] = byte(h.kind)
	le.PutUint16(b[6:], h.padding)
	le.PutUint32(b[8:], h.payload)
	le.PutUint32(b[12:], uint32(h.position.Segment()))
	le.PutUint32(b[16:], h.position.Offset())
	le.PutUint32(b[20:], uint32(h.key.Group))
	le.PutUint32(b[24:], uint32(h.key.Incarnation))
	le.PutUint32(b[28:], h.sum)
	le.PutUint64(b[32:], h.term)
	le.PutUint64(b[40:], h.index)
	le.PutUint64(b[48:], uint64(h.durable))
	le.PutUint32(b[56:], 0)
	le.PutUint32(b[60:], crc32.Update(salt, castagnoli, b[:60]))
}

// decodeRecordHeader reads a header. ok is false unless it was written by this store in the place at, and its
// length is possible. It does not judge version and kind; see known.
func decodeRecordHeader(b []byte, salt uint32, at Position) (h recordHeader, ok bool) {
	le := binary.LittleEndian
	if len(b) < recordHeaderBytes || le.Uint32(b) != recordMagic ||
		PositionOf(SegmentNo(le.Uint32(b[12:])), le.Uint32(b[16:])) != at ||
		crc32.Update(salt, castagnoli, b[:60]) != le.Uint32(b[60:]) {
		return recordHeader{}, false
	}
	h = recordHeader{
		kind:     recordKind(b[5]),
		version:  b[4],
		payload:  le.Uint32(b[8:]),
		position: at,
		key: GroupKey{
			Group:       storage.GroupID(le.Uint32(b[20:])),
			Incarnation: storage.Incarnation(le.Uint32(b[24:])),
		},
		sum:     le.Uint32(b[28:]),
		term:    le.Uint64(b[32:]),
		index:   le.Uint64(b[40:]),
		durable: Position(le.Uint64(b[48:])),
	}
	if h.version == paddedVersion {
		h.padding = le.Uint16(b[6:])
	}
	// The bound of the padding guards what is read of a record, and where the next one is looked for.
	return h, h.payload <= maxPayloadBytes && h.padding < pageBytes
}

// known reports whether this version of the code understands the record.
func (h *recordHeader) known() bool {
	return (h.version == recordVersion || h.version == paddedVersion) && h.kind > 0 && h.kind < kindEnd
}

// size is the record's size with header, padding and what fills it up.
func (h *recordHeader) size() int { return alignedBytes(int(h.payload) + int(h.padding)) }

// bodyBytes is how many bytes of payload and padding follow the header.
func (h *recordHeader) bodyBytes() int { return int(h.payload) + int(h.padding) }

// parts returns what of the bytes that follow the header is before the padding, prefix and extensions, and what is after it, the
// data. They are the payload. ok is false if the lengths cannot be; nothing is checked but them.
func (h *recordHeader) parts(body []byte) (front, data []byte, ok bool) {
	if h.kind != kindEntry && h.kind != kindData {
		return body, nil, h.padding == 0
	}
	if h.payload < prefixBytes || len(body) != h.bodyBytes() {
		return nil, nil, false
	}
	n := uint32(prefixBytes)
	if h.kind == kindEntry {
		p, ok := decodeEntryPrefix(body[:h.payload])
		if !ok {
			return nil, nil, false
		}
		n += p.extensions
	}
	return body[:n], body[n+uint32(h.padding):], true
}

// entryPrefix is what precedes an entry's extensions and data in the payload.
type entryPrefix struct {
	kind       uint8
	extensions uint32 // bytes
	appendedAt int64
}

func (p *entryPrefix) encode() (b [prefixBytes]byte) {
	b[0] = p.kind
	binary.LittleEndian.PutUint32(b[4:], p.extensions)
	binary.LittleEndian.PutUint64(b[8:], uint64(p.appendedAt))
	return b
}

// decodeEntryPrefix reads the prefix of a payload; ok is false if the lengths cannot be.
func decodeEntryPrefix(payload []byte) (p entryPrefix, ok bool) {
	if len(payload) < prefixBytes {
		return entryPrefix{}, false
	}
	p = entryPrefix{
		kind:       payload[0],
		extensions: binary.LittleEndian.Uint32(payload[4:]),
		appendedAt: int64(binary.LittleEndian.Uint64(payload[8:])),
	}
	return p, uint64(p.extensions) <= uint64(len(payload)-prefixBytes)
}

// DataHeader says what the blocks of a data record are, so that compaction knows in which table to look for them.
type DataHeader struct {
	Group      storage.GroupID
	Volume     storage.VolumeID
	Extent     storage.ExtentIndex
	Epoch      storage.Epoch
	FirstBlock uint16
}

// encodePrefix returns the prefix of the payload. Group and Volume are in the record's header.
func (h *DataHeader) encodePrefix() (b [prefixBytes]byte) {
	binary.LittleEndian.PutUint64(b[0:], uint64(h.Epoch))
	binary.LittleEndian.PutUint32(b[8:], uint32(h.Extent))
	binary.LittleEndian.PutUint16(b[12:], h.FirstBlock)
	return b
}

// StreamKind says what a segment's records are.
type StreamKind uint8

// The kinds of streams.
const (
	// StreamHot: the log itself.
	StreamHot StreamKind = 1
	// StreamCold: live blocks that compaction moved. No such segment is written yet.
	StreamCold StreamKind = 2
)

const (
	segmentMagic   = 0x48474553474f4c53 // "SLOGSEGH"
	segmentVersion = 1
)

// segmentHeader is the decoded header block of a segment file.
type segmentHeader struct {
	version   uint32
	store     storage.StoreID
	no        SegmentNo
	stream    StreamKind
	sizeBytes uint32   // of the segment
	logStart  Position // no group needed anything before when this header was written
}

const segmentHeaderUsed = 64

// encode writes the header to b[:segmentHeaderBytes]; what is not used is zero.
func (h *segmentHeader) encode(b []byte) {
	clear(b[:segmentHeaderBytes])
	le := binary.LittleEndian
	le.PutUint64(b[0:], segmentMagic)
	le.PutUint32(b[8:], segmentVersion)
	le.PutUint32(b[12:], uint32(h.no))
	copy(b[16:32], h.store[:])
	b[32] = byte(h.stream)
	le.PutUint32(b[36:], h.sizeBytes)
	le.PutUint64(b[40:], uint64(h.logStart))
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
}

// decodeSegmentHeader reads a header block; ok is false if it is not one.
func decodeSegmentHeader(b []byte) (h segmentHeader, ok bool) {
	le := binary.LittleEndian
	if len(b) < segmentHeaderUsed || le.Uint64(b) != segmentMagic ||
		crc32.Checksum(b[:60], castagnoli) != le.Uint32(b[60:]) {
		return segmentHeader{}, false
	}
	h.version = le.Uint32(b[8:])
	h.no = SegmentNo(le.Uint32(b[12:]))
	copy(h.store[:], b[16:32])
	h.stream = StreamKind(b[32])
	h.sizeBytes = le.Uint32(b[36:])
	h.logStart = Position(le.Uint64(b[40:]))
	return h, true
}
