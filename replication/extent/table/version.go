package table

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/bits"

	storage "github.com/storaged/storaged"
)

const (
	digestLen      = 16
	tableWhole     = 1 // what is shared lies at the same place
	tableByEpoch   = 2 // what is shared is inherited
	tablePageFixed = 1 + 8 + 8 + 8
	maxTableLen    = 1 + PagesPerExtent*(tablePageFixed+4*BlocksPerPage)
)

// Digest is of the contents of an extent version: which pages it has, and of each block its index and crc32c. Where
// the blocks lie does not matter, so replicas can compare it. It is the beginning of a SHA-256.
type Digest [digestLen]byte

// ExtentID names an extent within a table set.
type ExtentID struct {
	Volume storage.VolumeID
	Extent storage.ExtentIndex
}

// Next returns the extent after this one; false at the end of all.
func (id ExtentID) Next() (ExtentID, bool) {
	if id.Extent < math.MaxUint32 {
		return ExtentID{id.Volume, id.Extent + 1}, true
	}
	return ExtentID{Volume: id.Volume + 1}, id.Volume < math.MaxUint64
}

// VersionID names one version of an extent's table within a table set.
type VersionID struct {
	ExtentID
	Epoch storage.Epoch
}

// Version is one version of an extent's table: the pages that were written at one epoch; nil where there is none.
type Version struct {
	VersionID
	Pages [PagesPerExtent]*Page
}

// At returns where a block of the extent lies.
func (t *Version) At(block int) Entry {
	if p := t.Pages[block/BlocksPerPage]; p != nil {
		return p.Entries[block%BlocksPerPage]
	}
	return Entry{}
}

// Ref returns the name of the version with the digest of its contents.
func (t *Version) Ref() Ref {
	r := Ref{Volume: t.Volume, Extent: t.Extent, Epoch: t.Epoch}
	buf := make([]byte, 0, maxTableLen)
	for i, p := range t.Pages {
		if p == nil {
			continue
		}
		r.Index = max(r.Index, p.Index)
		buf = binary.LittleEndian.AppendUint64(append(buf, byte(i)), p.Bitmap())
		for j := range p.Entries {
			if e := &p.Entries[j]; e.Mapped() {
				buf = binary.LittleEndian.AppendUint32(buf, e.Sum)
			}
		}
	}
	h := sha256.Sum256(buf)
	copy(r.Digest[:], h[:])
	return r
}

// Empty reports whether the version has no page.
func (t *Version) Empty() bool { return t.Pages == [PagesPerExtent]*Page{} }

// Encode encodes the table without locations. Beside the sums it says which blocks a page has inherited from older versions,
// so that they are not pulled twice.
func (t *Version) Encode() []byte {
	return t.encode(tableByEpoch, func(_ int, p *Page) uint64 { return p.Bitmap() &^ p.Own })
}

// EncodeWhole is Encode for the version of the message before there were pages by epoch: what lies where it lies in the older
// version is shared with it.
func (t *Version) EncodeWhole(older *Version) []byte {
	return t.encode(tableWhole, func(i int, p *Page) (shared uint64) {
		if before := older.Pages[i]; before != nil {
			for j, e := range p.Entries {
				if e.Mapped() && e == before.Entries[j] {
					shared |= 1 << j
				}
			}
		}
		return shared
	})
}

func (t *Version) encode(version byte, shared func(i int, p *Page) uint64) []byte {
	le := binary.LittleEndian
	dst := []byte{version}
	for i, p := range t.Pages {
		if p == nil {
			continue
		}
		dst = append(dst, byte(i))
		for _, n := range []uint64{p.Index, p.Bitmap(), shared(i, p)} {
			dst = le.AppendUint64(dst, n)
		}
		for j := range p.Entries {
			if e := &p.Entries[j]; e.Mapped() {
				dst = le.AppendUint32(dst, e.Sum)
			}
		}
	}
	return dst
}

// DecodeVersion decodes a table. The blocks in missing have sums, but no place yet: their segment is 0. Those in shared
// are to be taken from the newest older version.
func DecodeVersion(id VersionID, data []byte) (t *Version, missing, shared BlockSet, err error) {
	fail := func(format string, args ...any) (*Version, BlockSet, BlockSet, error) {
		return nil, BlockSet{}, BlockSet{}, invalid("decode table", format, args...)
	}
	if len(data) < 1 || len(data) > maxTableLen || data[0] != tableWhole && data[0] != tableByEpoch {
		return fail("%d bytes with an unknown beginning", len(data))
	}
	t = &Version{VersionID: id}
	le := binary.LittleEndian
	last := -1
	for data = data[1:]; len(data) > 0; {
		if len(data) < tablePageFixed || data[0] >= PagesPerExtent || int(data[0]) <= last {
			return fail("page %d after %d, %d bytes left", data[0], last, len(data))
		}
		last = int(data[0])
		p := &Page{Epoch: id.Epoch, Index: le.Uint64(data[1:])}
		blocks, old := le.Uint64(data[9:]), le.Uint64(data[17:]) // of the page: mapped, and shared with an older version
		data = data[tablePageFixed:]
		n := bits.OnesCount64(blocks)
		if old&^blocks != 0 || len(data) < 4*n {
			return fail("page %d: %d bytes for %d blocks", last, len(data), n)
		}
		missing[last], shared[last] = blocks&^old, old
		for ; blocks != 0; blocks &= blocks - 1 {
			p.Entries[bits.TrailingZeros64(blocks)].Sum = le.Uint32(data)
			data = data[4:]
		}
		t.Pages[last] = p
	}
	if last < 0 {
		return fail("it has no page")
	}
	return t, missing, shared, nil
}

// DigestWith returns the digest of the table, in which the blocks of mapped count as mapped although they have no place yet.
func (t *Version) DigestWith(mapped *BlockSet) Digest {
	counted := Version{VersionID: t.VersionID}
	for i, p := range t.Pages {
		if p == nil {
			continue
		}
		q := *p
		for rest := mapped[i]; rest != 0; rest &= rest - 1 {
			q.Entries[bits.TrailingZeros64(rest)].Segment = 1
		}
		counted.Pages[i] = &q
	}
	return counted.Ref().Digest
}
