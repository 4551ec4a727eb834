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

	// MaxChain bounds how many older versions a page is put together from.
	MaxChain = 15
	// FirstEpoch is the epoch at which every volume begins.
	FirstEpoch storage.Epoch = 1

	pageWhole        = 1 // the form in which a version repeats what it has inherited
	pageByEpoch      = 2 // the form in which it does not
	pageWholeFixed   = 1 + 8 + 8
	pageByEpochFixed = 1 + 1 + 4*8
	entryLen         = 12
	// MaxPageLen bounds the value of a page.
	MaxPageLen = pageByEpochFixed + BlocksPerPage*entryLen + 4
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

// Page is one version of 64 entries of an extent table: those that were written at its epoch, and those that it has inherited
// from older versions. The zero Page, with an epoch, is the oldest version.
//
// Own is a subset of what the page stores, which is a subset of Bitmap.
type Page struct {
	Epoch storage.Epoch
	Index uint64 // of the last log entry that changed it
	// Chain is how many older versions are needed at most for what the page does not store; 0: it stores all that it maps.
	Chain uint8
	// Indexed: the database holds the page in the form by epoch, and with it the key under KeyIndex.
	Indexed bool
	// Own has one bit for each entry that was written at Epoch.
	Own uint64
	// Missing has one bit for each entry that an older version stores, and which has no place here before Inherit. A page is
	// whole when it is 0.
	Missing uint64
	Entries [BlocksPerPage]Entry
}

// Bitmap returns one bit for each mapped entry, the lowest for the first.
func (p *Page) Bitmap() uint64 {
	m := p.Missing
	for i := range p.Entries {
		if p.Entries[i].Mapped() {
			m |= 1 << i
		}
	}
	return m
}

// Stored returns one bit for each entry that is stored with the page, and counted as a reference.
func (p *Page) Stored() uint64 {
	if p.Chain == 0 {
		return p.Bitmap()
	}
	return p.Own
}

// Fork returns the version that follows a whole page at a later epoch. Nothing was written at it yet: it stores nothing, unless
// the chain is as long as it may be. Without byEpoch it stores all, as its own.
//
// Whether it stores all is decided here and not when it is written, so that counts do not depend on when that is.
func (p *Page) Fork(epoch storage.Epoch, byEpoch bool) Page {
	q := *p
	q.Epoch, q.Indexed, q.Own, q.Chain = epoch, false, 0, p.Chain+1
	if !byEpoch {
		q.Own = q.Bitmap()
	}
	if !byEpoch || q.Chain > MaxChain {
		q.Chain = 0
	}
	return q
}

// Set makes entry i of a whole page e, written at the page's epoch, and notes in c what that changes.
func (p *Page) Set(i int, e Entry, c Counts) {
	p.Unmap(i, c)
	p.Entries[i] = e
	p.Own |= 1 << i
	c.Bump(e.Segment, Count{1, 1})
}

// Unmap makes entry i of a whole page a hole, and notes in c what that changes.
func (p *Page) Unmap(i int, c Counts) {
	e, own := p.Entries[i], p.Own&(1<<i) != 0
	switch {
	case !e.Mapped():
		return
	case own:
		c.Bump(e.Segment, Count{-1, -1})
	case p.Chain == 0: // a reference to what an older version owns
		c.Bump(e.Segment, Count{Refs: -1})
	}
	p.Entries[i] = Entry{}
	p.Own &^= 1 << i
}

// Inherit takes what the page is missing from the next older version as far as that has it. The error is of KindCorrupt if
// that version does not map it.
func (p *Page) Inherit(older *Page) error {
	if lost := p.Missing &^ older.Bitmap(); lost != 0 {
		return Corrupt("put page together", "entries %#x of epoch %d are not mapped at epoch %d", lost, p.Epoch, older.Epoch)
	}
	for m := p.Missing &^ older.Missing; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		p.Entries[i] = older.Entries[i]
	}
	p.Missing &= older.Missing
	return nil
}

// Follow makes a whole page the version that follows before, a whole page too; nil: it is the oldest. What lies where it lies in
// before is inherited, everything else its own.
func (p *Page) Follow(before *Page, byEpoch bool) {
	p.Chain, p.Own, p.Indexed = 0, p.Bitmap(), false
	if before == nil || !byEpoch {
		return
	}
	p.Chain = before.Fork(p.Epoch, true).Chain
	for m := p.Own; m != 0; m &= m - 1 {
		if i := bits.TrailingZeros64(m); p.Entries[i] == before.Entries[i] {
			p.Own &^= 1 << i
		}
	}
}

// AppendValue appends the value under which the page is stored at key: in the form by epoch, or in the older one, in which a
// page stores all that it maps, as its own.
func (p *Page) AppendValue(dst, key []byte, byEpoch bool) []byte {
	base := len(dst)
	le := binary.LittleEndian
	mapped, stored := p.Bitmap(), p.Stored()
	switch {
	case byEpoch:
		dst = append(dst, pageByEpoch, p.Chain)
		for _, n := range []uint64{p.Index, mapped, p.Own, stored} {
			dst = le.AppendUint64(dst, n)
		}
	case p.Own != mapped:
		// Guards I1: more entries would be stored than are counted, and a segment recycled that they refer to.
		panic(fmt.Sprintf("table: a page of epoch %d with entries %#x of its own of %#x is stored whole", p.Epoch, p.Own, mapped))
	default:
		dst = append(dst, pageWhole)
		dst = le.AppendUint64(le.AppendUint64(dst, p.Index), mapped)
	}
	for m := stored; m != 0; m &= m - 1 {
		e := &p.Entries[bits.TrailingZeros64(m)]
		dst = le.AppendUint32(dst, uint32(e.Segment))
		dst = le.AppendUint32(dst, e.Offset)
		dst = le.AppendUint32(dst, e.Sum)
	}
	return append(dst[:base], Seal(key, dst[base:])...)
}

// Decode makes the page what is stored at key. It may have entries missing.
func (p *Page) Decode(key, value []byte) error {
	_, v, ok := ParsePageKey(key)
	if !ok {
		return Corrupt("decode page", "key %x", key)
	}
	body, err := Unseal(key, value)
	if err != nil {
		return Corrupt("decode page", "%s of extent %d of volume %d: %w", pageName(v.Page), v.Extent, v.Volume, err)
	}
	le := binary.LittleEndian
	var mapped, stored uint64
	var rest []byte
	switch {
	case len(body) >= pageByEpochFixed && body[0] == pageByEpoch:
		*p = Page{Epoch: v.Epoch, Chain: body[1], Index: le.Uint64(body[2:]), Own: le.Uint64(body[18:]), Indexed: true}
		mapped, stored, rest = le.Uint64(body[10:]), le.Uint64(body[26:]), body[pageByEpochFixed:]
	case len(body) >= pageWholeFixed && body[0] == pageWhole:
		mapped = le.Uint64(body[9:])
		*p = Page{Epoch: v.Epoch, Index: le.Uint64(body[1:]), Own: mapped}
		stored, rest = mapped, body[pageWholeFixed:]
	default:
		return Corrupt("decode page", "%d bytes with an unknown beginning", len(body))
	}
	want := p.Own
	if p.Chain == 0 {
		want = mapped
	}
	if p.Chain > MaxChain || p.Own&^mapped != 0 || stored != want {
		return Corrupt("decode page", "it maps %#x, of which %#x is its own and %#x stored, in a chain of %d", mapped, p.Own, stored, p.Chain)
	}
	if len(rest) != entryLen*bits.OnesCount64(stored) {
		return Corrupt("decode page", "%d bytes for %d entries", len(rest), bits.OnesCount64(stored))
	}
	p.Missing = mapped &^ stored
	for m := stored; m != 0; m &= m - 1 {
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
