package extent

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	storage "github.com/storaged/storaged"
)

const (
	digestLen      = 16
	tableVersion   = 1
	tablePageFixed = 1 + 8 + 8 + 8
	maxTableLen    = 1 + pagesPerExtent*(tablePageFixed+4*blocksPerPage)
)

// Digest is of the contents of an extent version: which pages it has, and of each block its index and crc32c. Where
// the blocks lie does not matter, so replicas can compare it. It is the beginning of a SHA-256.
type Digest [digestLen]byte

// extentID names an extent within a table set.
type extentID struct {
	volume storage.VolumeID
	extent storage.ExtentIndex
}

// next returns the extent after this one; false at the end of all.
func (id extentID) next() (extentID, bool) {
	if id.extent < math.MaxUint32 {
		return extentID{id.volume, id.extent + 1}, true
	}
	return extentID{volume: id.volume + 1}, id.volume < math.MaxUint64
}

// table is one version of an extent's table: the pages that were written at one epoch; nil where there is none.
type table struct {
	extentID
	epoch storage.Epoch
	pages [pagesPerExtent]*page
}

func (t *table) at(block int) entry {
	if p := t.pages[block/blocksPerPage]; p != nil {
		return p.entries[block%blocksPerPage]
	}
	return entry{}
}

// ref returns the name of the version with the digest of its contents.
func (t *table) ref() ExtentRef {
	r := ExtentRef{Volume: t.volume, Extent: t.extent, Epoch: t.epoch}
	buf := make([]byte, 0, maxTableLen)
	for i, p := range t.pages {
		if p == nil {
			continue
		}
		r.Index = max(r.Index, p.index)
		buf = binary.LittleEndian.AppendUint64(append(buf, byte(i)), p.bitmap())
		for j := range p.entries {
			if e := &p.entries[j]; e.mapped() {
				buf = binary.LittleEndian.AppendUint32(buf, e.crc)
			}
		}
	}
	h := sha256.Sum256(buf)
	copy(r.Digest[:], h[:])
	return r
}

// encode encodes the table without locations. Beside the sums it says which blocks a page shares with the newest
// older version of the same page, so that they are not pulled twice. older are the extent's older versions, ascending.
func (t *table) encode(older []*table) []byte {
	le := binary.LittleEndian
	dst := []byte{tableVersion}
	for i, p := range t.pages {
		if p == nil {
			continue
		}
		var shared uint64
		if q := olderPage(older, i); q != nil {
			for j, e := range p.entries {
				if e.mapped() && e == q.entries[j] {
					shared |= 1 << j
				}
			}
		}
		dst = append(dst, byte(i))
		dst = le.AppendUint64(dst, p.index)
		dst = le.AppendUint64(dst, p.bitmap())
		dst = le.AppendUint64(dst, shared)
		for j := range p.entries {
			if e := &p.entries[j]; e.mapped() {
				dst = le.AppendUint32(dst, e.crc)
			}
		}
	}
	return dst
}

// olderPage returns the newest version of page i among the tables, which ascend.
func olderPage(older []*table, i int) *page {
	for _, t := range slices.Backward(older) {
		if t.pages[i] != nil {
			return t.pages[i]
		}
	}
	return nil
}

// decodeTable decodes a table. The blocks in missing have sums, but no place yet: their segment is 0. Those in shared
// are to be taken from the newest older version.
func decodeTable(id extentID, epoch storage.Epoch, data []byte) (t *table, missing, shared blockSet, err error) {
	fail := func(format string, args ...any) (*table, blockSet, blockSet, error) {
		return nil, blockSet{}, blockSet{}, invalid("decode table", format, args...)
	}
	if len(data) < 1 || len(data) > maxTableLen || data[0] != tableVersion {
		return fail("%d bytes with an unknown beginning", len(data))
	}
	t = &table{extentID: id, epoch: epoch}
	le := binary.LittleEndian
	last := -1
	for data = data[1:]; len(data) > 0; {
		if len(data) < tablePageFixed || data[0] >= pagesPerExtent || int(data[0]) <= last {
			return fail("page %d after %d, %d bytes left", data[0], last, len(data))
		}
		last = int(data[0])
		p := &page{epoch: epoch, index: le.Uint64(data[1:])}
		m, sh := le.Uint64(data[9:]), le.Uint64(data[17:])
		data = data[tablePageFixed:]
		n := bits.OnesCount64(m)
		if sh&^m != 0 || len(data) < 4*n {
			return fail("page %d: %d bytes for %d blocks", last, len(data), n)
		}
		missing[last], shared[last] = m&^sh, sh
		for ; m != 0; m &= m - 1 {
			p.entries[bits.TrailingZeros64(m)].crc = le.Uint32(data)
			data = data[4:]
		}
		t.pages[last] = p
	}
	if last < 0 {
		return fail("it has no page")
	}
	return t, missing, shared, nil
}

// digestOf returns the digest of a table in which the blocks of mapped count as mapped although they have no place.
func digestOf(t *table, mapped *blockSet) Digest {
	c := table{extentID: t.extentID, epoch: t.epoch}
	for i, p := range t.pages {
		if p == nil {
			continue
		}
		q := *p
		for m := mapped[i]; m != 0; m &= m - 1 {
			q.entries[bits.TrailingZeros64(m)].segment = 1
		}
		c.pages[i] = &q
	}
	return c.ref().Digest
}

// firstExtent returns the first extent of the set at or after id that has a table.
func (m *meta) firstExtent(r pebble.Reader, set setID, id extentID) (found extentID, ok bool, err error) {
	from := appendPageKey(nil, set, pageKey{id.volume, id.extent, 0}, storage.Epoch(maxUint64))
	err = m.scanOn(r, from, afterPrefix(setPrefix(keyPage, set)), func(k, _ []byte) (bool, error) {
		_, v, valid := parsePageKey(k)
		if !valid {
			return false, corrupt("read tables", "key %x", k)
		}
		found, ok = extentID{v.volume, v.extent}, true
		return false, nil
	})
	return found, ok, err
}

// loadTables returns all versions of an extent's table, in ascending order of epoch.
func (m *meta) loadTables(r pebble.Reader, set setID, id extentID) ([]*table, error) {
	from := appendPageKey(nil, set, pageKey{id.volume, id.extent, 0}, storage.Epoch(maxUint64))
	to := append(appendPageKey(nil, set, pageKey{id.volume, id.extent, pagesPerExtent - 1}, 0), 0)
	byEpoch := map[storage.Epoch]*table{}
	var tables []*table
	err := m.scanOn(r, from, to, func(k, v []byte) (bool, error) {
		p, err := decodePage(k, v)
		if err != nil {
			return false, err
		}
		t := byEpoch[p.epoch]
		if t == nil {
			t = &table{extentID: id, epoch: p.epoch}
			byEpoch[p.epoch] = t
			tables = append(tables, t)
		}
		_, key, _ := parsePageKey(k)
		t.pages[key.page] = p
		return true, nil
	})
	slices.SortFunc(tables, func(a, b *table) int {
		if a.epoch < b.epoch {
			return -1
		}
		return 1
	})
	return tables, err
}
