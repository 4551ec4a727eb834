package table

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// BlocksPerPage is how many blocks a page of a table is for.
	BlocksPerPage = 64
	// PagesPerExtent is how many pages a table has.
	PagesPerExtent = storage.BlocksPerExtent / BlocksPerPage

	pageVersion  = 1
	pageFixedLen = 1 + 8 + 8
	entryLen     = 12
	// MaxPageLen bounds the value of a page.
	MaxPageLen = pageFixedLen + BlocksPerPage*entryLen + 4
)

// Entry says where one block lies. The zero Entry is a hole.
type Entry struct {
	Segment segment.SegmentNo // 0: not mapped
	Offset  uint32
	Sum     uint32 // crc32c of the block
}

// Mapped reports whether there is a block.
func (e Entry) Mapped() bool { return e.Segment != 0 }

// Position returns where the block lies.
func (e Entry) Position() segment.Position { return segment.PositionOf(e.Segment, e.Offset) }

// Page is one version of 64 entries of an extent table.
type Page struct {
	Epoch   storage.Epoch
	Index   uint64 // of the last log entry that changed it
	Entries [BlocksPerPage]Entry
}

// Bitmap returns one bit for each mapped entry, the lowest for the first.
func (p *Page) Bitmap() (m uint64) {
	for i := range p.Entries {
		if p.Entries[i].Mapped() {
			m |= 1 << i
		}
	}
	return m
}

// AppendValue appends the value under which the page is stored at key.
func (p *Page) AppendValue(dst, key []byte) []byte {
	base := len(dst)
	le := binary.LittleEndian
	dst = append(dst, pageVersion)
	dst = le.AppendUint64(dst, p.Index)
	dst = le.AppendUint64(dst, p.Bitmap())
	for i := range p.Entries {
		if e := &p.Entries[i]; e.Mapped() {
			dst = le.AppendUint32(dst, uint32(e.Segment))
			dst = le.AppendUint32(dst, e.Offset)
			dst = le.AppendUint32(dst, e.Sum)
		}
	}
	return append(dst[:base], Seal(key, dst[base:])...)
}

// Decode makes the page what is stored at key.
func (p *Page) Decode(key, value []byte) error {
	_, v, ok := ParsePageKey(key)
	if !ok {
		return Corrupt("decode page", "key %x", key)
	}
	body, err := Unseal(key, value)
	if err != nil {
		return Corrupt("decode page", "%s of extent %d of volume %d: %w", pageName(v.Page), v.Extent, v.Volume, err)
	}
	if len(body) < pageFixedLen || body[0] != pageVersion {
		return Corrupt("decode page", "%d bytes with an unknown beginning", len(body))
	}
	le := binary.LittleEndian
	*p = Page{Epoch: v.Epoch, Index: le.Uint64(body[1:])}
	m := le.Uint64(body[9:])
	rest := body[pageFixedLen:]
	if len(rest) != entryLen*bits.OnesCount64(m) {
		return Corrupt("decode page", "%d bytes for %d entries", len(rest), bits.OnesCount64(m))
	}
	for ; m != 0; m &= m - 1 {
		e := Entry{Segment: segment.SegmentNo(le.Uint32(rest)), Offset: le.Uint32(rest[4:]), Sum: le.Uint32(rest[8:])}
		if !e.Mapped() {
			return Corrupt("decode page", "an Entry refers to segment 0")
		}
		p.Entries[bits.TrailingZeros64(m)] = e
		rest = rest[entryLen:]
	}
	return nil
}

func pageName(n uint8) string {
	return fmt.Sprintf("blocks %d to %d", int(n)*BlocksPerPage, (int(n)+1)*BlocksPerPage-1)
}

// Pieces cuts blocks [first, first+n) of an extent at page borders and calls fn with each page's number, the first
// entry in the page, and the half-open range of the piece counted from first.
func Pieces(first, n int, fn func(pageNo uint8, at, from, to int) error) error {
	for from := 0; from < n; {
		at := (first + from) % BlocksPerPage
		to := min(from+BlocksPerPage-at, n)
		if err := fn(uint8((first+from)/BlocksPerPage), at, from, to); err != nil {
			return err
		}
		from = to
	}
	return nil
}
