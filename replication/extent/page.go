package extent

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

const (
	blocksPerPage  = 64
	pagesPerExtent = storage.BlocksPerExtent / blocksPerPage

	pageVersion  = 1
	pageFixedLen = 1 + 8 + 8
	entryLen     = 12
	maxPageLen   = pageFixedLen + blocksPerPage*entryLen + 4

	// pageMemory is what a slot with its page costs in memory, about.
	pageMemory = 1 << 10
)

// entry says where one block lies. The zero entry is a hole.
type entry struct {
	segment segment.SegmentNo // 0: not mapped
	offset  uint32
	crc     uint32
}

func (e entry) mapped() bool               { return e.segment != 0 }
func (e entry) position() segment.Position { return segment.PositionOf(e.segment, e.offset) }

// page is one version of 64 entries of an extent table. Its owner's lock guards it; once it is frozen it does not
// change any more.
type page struct {
	epoch   storage.Epoch
	index   uint64 // of the last log entry that changed it
	entries [blocksPerPage]entry

	// dirtySince is 0 for a page that the last checkpoint holds, otherwise the group's freeze count when it was
	// changed. A page may be changed in place unless it is frozen: 0 < dirtySince < the group's count.
	dirtySince uint64
}

// clone returns a copy under the epoch, of which no checkpoint knows.
func (p *page) clone(epoch storage.Epoch) *page {
	c := *p
	c.epoch, c.dirtySince = epoch, 0
	return &c
}

// bitmap returns one bit for each mapped entry, the lowest for the first.
func (p *page) bitmap() (m uint64) {
	for i := range p.entries {
		if p.entries[i].mapped() {
			m |= 1 << i
		}
	}
	return m
}

// appendValue appends the value under which the page is stored at key.
func (p *page) appendValue(dst, key []byte) []byte {
	base := len(dst)
	le := binary.LittleEndian
	dst = append(dst, pageVersion)
	dst = le.AppendUint64(dst, p.index)
	dst = le.AppendUint64(dst, p.bitmap())
	for i := range p.entries {
		if e := &p.entries[i]; e.mapped() {
			dst = le.AppendUint32(dst, uint32(e.segment))
			dst = le.AppendUint32(dst, e.offset)
			dst = le.AppendUint32(dst, e.crc)
		}
	}
	return append(dst[:base], seal(key, dst[base:])...)
}

// decodePage decodes the value stored at key.
func decodePage(key, value []byte) (*page, error) {
	_, v, ok := parsePageKey(key)
	if !ok {
		return nil, corrupt("decode page", "key %x", key)
	}
	body, err := unseal(key, value)
	if err != nil {
		return nil, corrupt("decode page", "%s of extent %d of volume %d: %w", pageName(v.page), v.extent, v.volume, err)
	}
	if len(body) < pageFixedLen || body[0] != pageVersion {
		return nil, corrupt("decode page", "%d bytes with an unknown beginning", len(body))
	}
	le := binary.LittleEndian
	p := &page{epoch: v.epoch, index: le.Uint64(body[1:])}
	m := le.Uint64(body[9:])
	rest := body[pageFixedLen:]
	if len(rest) != entryLen*bits.OnesCount64(m) {
		return nil, corrupt("decode page", "%d bytes for %d entries", len(rest), bits.OnesCount64(m))
	}
	for ; m != 0; m &= m - 1 {
		e := entry{segment: segment.SegmentNo(le.Uint32(rest)), offset: le.Uint32(rest[4:]), crc: le.Uint32(rest[8:])}
		if !e.mapped() {
			return nil, corrupt("decode page", "an entry refers to segment 0")
		}
		p.entries[bits.TrailingZeros64(m)] = e
		rest = rest[entryLen:]
	}
	return p, nil
}

func pageName(n uint8) string {
	return fmt.Sprintf("blocks %d to %d", int(n)*blocksPerPage, (int(n)+1)*blocksPerPage-1)
}

func corrupt(op, format string, args ...any) error {
	return &storage.Error{Op: op, Kind: storage.KindCorrupt, Err: fmt.Errorf(format, args...)}
}

// pieces cuts blocks [first, first+n) of an extent at page borders and calls fn with each page's number, the first
// entry in the page, and the half-open range of the piece counted from first.
func pieces(first, n int, fn func(pageNo uint8, at, from, to int) error) error {
	for from := 0; from < n; {
		at := (first + from) % blocksPerPage
		to := min(from+blocksPerPage-at, n)
		if err := fn(uint8((first+from)/blocksPerPage), at, from, to); err != nil {
			return err
		}
		from = to
	}
	return nil
}
