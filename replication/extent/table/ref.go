package table

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	storage "github.com/storaged/storaged"
)

// Ref names one version of an extent's table: the pages that were written at Epoch.
type Ref struct {
	Volume storage.VolumeID
	Extent storage.ExtentIndex
	Epoch  storage.Epoch
	Index  uint64 // of the last log entry that changed it
	Digest Digest
}

// MaxRefs bounds a list of versions.
const MaxRefs = 4096

const (
	refListVersion = 1
	refLen         = 8 + 4 + 8 + 8 + digestLen
)

// String names the version for people.
func (r Ref) String() string {
	return fmt.Sprintf("extent %d of volume %d at epoch %d", r.Extent, r.Volume, r.Epoch)
}

// ID returns the name without what the version holds.
func (r Ref) ID() VersionID {
	return VersionID{ExtentID: ExtentID{Volume: r.Volume, Extent: r.Extent}, Epoch: r.Epoch}
}

// After reports whether the version comes after another one, in ascending order of volume, extent and epoch.
func (r Ref) After(o Ref) bool {
	switch {
	case r.Volume != o.Volume:
		return r.Volume > o.Volume
	case r.Extent != o.Extent:
		return r.Extent > o.Extent
	default:
		return r.Epoch > o.Epoch
	}
}

// AppendRefs appends the encoding of a list.
func AppendRefs(dst []byte, refs []Ref) []byte {
	le := binary.LittleEndian
	dst = append(dst, refListVersion)
	for _, r := range refs {
		dst = le.AppendUint64(dst, uint64(r.Volume))
		dst = le.AppendUint32(dst, uint32(r.Extent))
		dst = le.AppendUint64(dst, uint64(r.Epoch))
		dst = le.AppendUint64(dst, r.Index)
		dst = append(dst, r.Digest[:]...)
	}
	return dst
}

// DecodeRefs decodes a list that fills data, of at most MaxRefs.
func DecodeRefs(data []byte) ([]Ref, error) {
	if len(data) < 1 || data[0] != refListVersion || (len(data)-1)%refLen != 0 || (len(data)-1)/refLen > MaxRefs {
		return nil, invalid("decode extents", "%d bytes", len(data))
	}
	le := binary.LittleEndian
	refs := make([]Ref, 0, (len(data)-1)/refLen)
	for p := data[1:]; len(p) > 0; p = p[refLen:] {
		r := Ref{Volume: storage.VolumeID(le.Uint64(p)), Extent: storage.ExtentIndex(le.Uint32(p[8:])),
			Epoch: storage.Epoch(le.Uint64(p[12:])), Index: le.Uint64(p[20:])}
		copy(r.Digest[:], p[28:])
		refs = append(refs, r)
	}
	return refs, nil
}

// MaxRun bounds a run: the payload of one log entry.
const MaxRun = storage.MaxEntryPayloadBytes / storage.BlockSize

// BlockRun is a run of blocks of an extent.
type BlockRun struct{ First, N int }

// Runs returns the blocks of the set as runs of at most MaxRun.
func (m *BlockSet) Runs() (runs []BlockRun) {
	for b := range storage.BlocksPerExtent {
		if !m.Has(b) {
			continue
		}
		if k := len(runs) - 1; k >= 0 && runs[k].First+runs[k].N == b && runs[k].N < MaxRun {
			runs[k].N++
		} else {
			runs = append(runs, BlockRun{b, 1})
		}
	}
	return runs
}

// BlockSet is one bit for each block of an extent.
type BlockSet [PagesPerExtent]uint64

// Count returns how many blocks are in the set.
func (m *BlockSet) Count() (n int) {
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return n
}

// Has reports whether a block is in the set.
func (m *BlockSet) Has(b int) bool { return m[b/64]&(1<<(b%64)) != 0 }

// Drop takes a block out of the set.
func (m *BlockSet) Drop(b int) { m[b/64] &^= 1 << (b % 64) }
