package table

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// The first byte of every key in Pebble. docs/format/extent.md has the table.
const (
	KeyCounter     = 'c' // -> next table set
	KeyPurge       = 'd' // set, volume: its tables are being removed
	KeyGroup       = 'g' // group, incarnation: the checkpoint
	KeyLive        = 'l' // set, segment: number of table entries that refer to it
	KeyIncarnation = 'n' // group: highest incarnations given out and created
	KeyPage        = 'p' // set, volume, extent, page, ^epoch
	KeyStable      = 's' // group, incarnation, name
	KeyStaged      = 't' // group, incarnation, set: what a pull into the replica has brought, and has not installed
	KeyVolume      = 'v' // set, volume: sessions, generation, epoch
	KeyIndex       = 'x' // set, volume, epoch, extent, page: the page was written at an epoch after the volume's first
)

// SetID numbers a table set: the tables, live counts and volume states of one replica, or of one staging. An install
// makes a group name another set, so that it takes one small batch whatever the size of the group.
type SetID uint64

var be = binary.BigEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SetPrefix begins the keys of a kind in a table set.
func SetPrefix(kind byte, set SetID) []byte {
	return be.AppendUint64([]byte{kind}, uint64(set))
}

// SetOf returns the table set of a key that begins with SetPrefix; ok is false if it is too short.
func SetOf(key []byte) (set SetID, ok bool) {
	if len(key) < 9 {
		return 0, false
	}
	return SetID(be.Uint64(key[1:])), true
}

// AfterPrefix returns the smallest key that is larger than every key with the prefix.
func AfterPrefix(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// GroupKey returns the key of a kind that names a replica.
func GroupKey(kind byte, key segment.GroupKey) []byte {
	b := be.AppendUint32([]byte{kind}, uint32(key.Group))
	return be.AppendUint32(b, uint32(key.Incarnation))
}

// ParseGroupKey is the inverse of GroupKey.
func ParseGroupKey(k []byte) (segment.GroupKey, bool) {
	if len(k) != 9 {
		return segment.GroupKey{}, false
	}
	return segment.GroupKey{Group: storage.GroupID(be.Uint32(k[1:])), Incarnation: storage.Incarnation(be.Uint32(k[5:]))}, true
}

// IncarnationKey returns the key of a group's incarnations.
func IncarnationKey(group storage.GroupID) []byte {
	return be.AppendUint32([]byte{KeyIncarnation}, uint32(group))
}

// LiveKey returns the key of the live count of a segment.
func LiveKey(set SetID, no segment.SegmentNo) []byte {
	return be.AppendUint32(SetPrefix(KeyLive, set), uint32(no))
}

// VolumeKey returns the key of a kind that names a volume; with KeyPage, the prefix of the keys of its pages.
func VolumeKey(kind byte, set SetID, id storage.VolumeID) []byte {
	return be.AppendUint64(SetPrefix(kind, set), uint64(id))
}

// PageKey names a page of 64 blocks of an extent, in all its versions.
type PageKey struct {
	Volume storage.VolumeID
	Extent storage.ExtentIndex
	Page   uint8 // < PagesPerExtent
}

// ID returns the extent that the page is of.
func (k PageKey) ID() ExtentID { return ExtentID{k.Volume, k.Extent} }

// Compare orders pages as their keys are ordered within a set.
func (k PageKey) Compare(o PageKey) int {
	return cmp.Or(cmp.Compare(k.Volume, o.Volume), cmp.Compare(k.Extent, o.Extent), cmp.Compare(k.Page, o.Page))
}

// VersionKey names one version of a page.
type VersionKey struct {
	PageKey
	Epoch storage.Epoch
}

// Compare orders versions as their keys are ordered within a set: the newest of a page first.
func (k VersionKey) Compare(o VersionKey) int {
	return cmp.Or(k.PageKey.Compare(o.PageKey), cmp.Compare(o.Epoch, k.Epoch))
}

// PageKeyLen is the length of the keys that AppendPageKey makes.
const PageKeyLen = 1 + 8 + 8 + 4 + 1 + 8

// AppendPageKey appends the key of a version. Newer epochs come first, so that seeking to epoch e finds the newest
// version with an epoch not above e.
func AppendPageKey(dst []byte, set SetID, k PageKey, epoch storage.Epoch) []byte {
	dst = append(dst, KeyPage)
	dst = be.AppendUint64(dst, uint64(set))
	dst = be.AppendUint64(dst, uint64(k.Volume))
	dst = be.AppendUint32(dst, uint32(k.Extent))
	dst = append(dst, k.Page)
	return be.AppendUint64(dst, ^uint64(epoch))
}

// ParsePageKey is the inverse of AppendPageKey; ok is false for a key that it does not make.
func ParsePageKey(k []byte) (set SetID, v VersionKey, ok bool) {
	if len(k) != PageKeyLen || k[0] != KeyPage || k[21] >= PagesPerExtent {
		return 0, VersionKey{}, false
	}
	return SetID(be.Uint64(k[1:])), VersionKey{
		PageKey: PageKey{Volume: storage.VolumeID(be.Uint64(k[9:])), Extent: storage.ExtentIndex(be.Uint32(k[17:])), Page: k[21]},
		Epoch:   storage.Epoch(^be.Uint64(k[22:])),
	}, true
}

// PageKeyAfter returns where the keys of pages begin that lie 2^step pages behind that of a page's key, or of its beginning, in whatever
// volume or set that is; nil: behind all.
func PageKeyAfter(key []byte, step int) []byte {
	const end = PageKeyLen - 8 // the epoch does not count
	out := append([]byte(nil), key[:min(len(key), end)]...)
	out = append(out, make([]byte, end-len(out))...)
	carry := uint(1) << (step % 8)
	for i := end - 1 - step/8; i > 0 && carry != 0; i-- {
		carry += uint(out[i])
		out[i], carry = byte(carry), carry>>8
	}
	if carry != 0 {
		return nil
	}
	return out
}

// indexKeyLen is the length of the keys that AppendIndexKey makes.
const indexKeyLen = 1 + 8 + 8 + 8 + 4 + 1

// AppendIndexKey appends the key that says of a version of a page that it is there. In their order, one scan finds the pages
// that were written within a range of epochs.
func AppendIndexKey(dst []byte, set SetID, v VersionKey) []byte {
	dst = append(dst, KeyIndex)
	for _, n := range []uint64{uint64(set), uint64(v.Volume), uint64(v.Epoch)} {
		dst = be.AppendUint64(dst, n)
	}
	return append(be.AppendUint32(dst, uint32(v.Extent)), v.Page)
}

// DecodeIndex decodes a key made by AppendIndexKey, with its value, which is a checksum and nothing else.
func DecodeIndex(key, value []byte) (set SetID, v VersionKey, err error) {
	if _, err := UnsealLen(key, value, indexKeyLen, 0); err != nil {
		return 0, v, Corrupt("decode index", "key %x: %w", key, err)
	}
	v = VersionKey{PageKey: PageKey{Volume: storage.VolumeID(be.Uint64(key[9:])), Extent: storage.ExtentIndex(be.Uint32(key[25:])), Page: key[29]},
		Epoch: storage.Epoch(be.Uint64(key[17:]))}
	if v.Page >= PagesPerExtent || v.Epoch <= FirstEpoch {
		return 0, v, Corrupt("decode index", "page %d of epoch %d", v.Page, v.Epoch)
	}
	return SetID(be.Uint64(key[1:])), v, nil
}

// Seal appends the checksum of key and value to a value, so that a value under a wrong key is noticed as well.
func Seal(key, value []byte) []byte {
	c := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
	return binary.LittleEndian.AppendUint32(value, c)
}

// ErrSeal is the error of Unseal for a checksum that does not match.
var ErrSeal = errors.New("checksum mismatch")

// Unseal checks and removes the checksum.
func Unseal(key, value []byte) ([]byte, error) {
	if len(value) < 4 {
		return nil, fmt.Errorf("%d bytes are too short", len(value))
	}
	body := value[:len(value)-4]
	c := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, body)
	if c != binary.LittleEndian.Uint32(value[len(body):]) {
		return nil, ErrSeal
	}
	return body, nil
}

// AnyLen is a length that UnsealLen does not check.
const AnyLen = -1

// UnsealLen is Unseal for records with lengths of their own.
func UnsealLen(key, value []byte, keyLen, bodyLen int) ([]byte, error) {
	if keyLen != AnyLen && len(key) != keyLen {
		return nil, fmt.Errorf("a key of %d bytes, not %d", len(key), keyLen)
	}
	body, err := Unseal(key, value)
	if err == nil && bodyLen != AnyLen && len(body) != bodyLen {
		return nil, fmt.Errorf("%d bytes, not %d", len(body), bodyLen)
	}
	return body, err
}

// VolumeKeyLen is the length of the keys that VolumeKey makes.
const VolumeKeyLen = 17

// ParseVolumeKey returns the volume of a key made by VolumeKey.
func ParseVolumeKey(k []byte) storage.VolumeID { return storage.VolumeID(be.Uint64(k[9:])) }
