package extent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// The first byte of every key in Pebble. docs/format/extent.md has the table.
const (
	keyCounter     = 'c' // -> next table set
	keyPurge       = 'd' // set, volume: its tables are being removed
	keyGroup       = 'g' // group, incarnation: the checkpoint
	keyLive        = 'l' // set, segment: number of table entries that refer to it
	keyIncarnation = 'n' // group: highest incarnations given out and created
	keyPage        = 'p' // set, volume, extent, page, ^epoch
	keyStable      = 's' // group, incarnation, name
	keyVolume      = 'v' // set, volume: sessions, generation, epoch
)

// setID numbers a table set: the tables, live counts and volume states of one replica, or of one staging. An install
// makes a group name another set, so that it takes one small batch whatever the size of the group.
type setID uint64

var be = binary.BigEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func setPrefix(kind byte, set setID) []byte {
	return be.AppendUint64([]byte{kind}, uint64(set))
}

// afterPrefix returns the smallest key that is larger than every key with the prefix.
func afterPrefix(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func groupKeyBytes(kind byte, key segment.GroupKey) []byte {
	b := be.AppendUint32([]byte{kind}, uint32(key.Group))
	return be.AppendUint32(b, uint32(key.Incarnation))
}

func parseGroupKey(k []byte) (segment.GroupKey, bool) {
	if len(k) != 9 {
		return segment.GroupKey{}, false
	}
	return segment.GroupKey{Group: storage.GroupID(be.Uint32(k[1:])), Incarnation: storage.Incarnation(be.Uint32(k[5:]))}, true
}

func incarnationKey(group storage.GroupID) []byte {
	return be.AppendUint32([]byte{keyIncarnation}, uint32(group))
}

func liveKey(set setID, no segment.SegmentNo) []byte {
	return be.AppendUint32(setPrefix(keyLive, set), uint32(no))
}

func volumeKey(kind byte, set setID, id storage.VolumeID) []byte {
	return be.AppendUint64(setPrefix(kind, set), uint64(id))
}

// pageKey names a page of 64 blocks of an extent, in all its versions.
type pageKey struct {
	volume storage.VolumeID
	extent storage.ExtentIndex
	page   uint8 // < pagesPerExtent
}

func (k pageKey) extentID() extentID { return extentID{k.volume, k.extent} }

// versionKey names one version of a page.
type versionKey struct {
	pageKey
	epoch storage.Epoch
}

const pageKeyLen = 1 + 8 + 8 + 4 + 1 + 8

// appendPageKey appends the key of a version. Newer epochs come first, so that seeking to epoch e finds the newest
// version with an epoch not above e.
func appendPageKey(dst []byte, set setID, k pageKey, epoch storage.Epoch) []byte {
	dst = append(dst, keyPage)
	dst = be.AppendUint64(dst, uint64(set))
	dst = be.AppendUint64(dst, uint64(k.volume))
	dst = be.AppendUint32(dst, uint32(k.extent))
	dst = append(dst, k.page)
	return be.AppendUint64(dst, ^uint64(epoch))
}

func parsePageKey(k []byte) (set setID, v versionKey, ok bool) {
	if len(k) != pageKeyLen || k[0] != keyPage || k[21] >= pagesPerExtent {
		return 0, versionKey{}, false
	}
	return setID(be.Uint64(k[1:])), versionKey{
		pageKey: pageKey{volume: storage.VolumeID(be.Uint64(k[9:])), extent: storage.ExtentIndex(be.Uint32(k[17:])), page: k[21]},
		epoch:   storage.Epoch(^be.Uint64(k[22:])),
	}, true
}

// seal appends the checksum of key and value to a value, so that a value under a wrong key is noticed as well.
func seal(key, value []byte) []byte {
	c := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
	return binary.LittleEndian.AppendUint32(value, c)
}

var errSeal = errors.New("checksum mismatch")

// unseal checks and removes the checksum.
func unseal(key, value []byte) ([]byte, error) {
	if len(value) < 4 {
		return nil, fmt.Errorf("%d bytes are too short", len(value))
	}
	body := value[:len(value)-4]
	c := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, body)
	if c != binary.LittleEndian.Uint32(value[len(body):]) {
		return nil, errSeal
	}
	return body, nil
}

// parseVolumeKey returns the volume of a key made by volumeKey.
func parseVolumeKey(k []byte) storage.VolumeID { return storage.VolumeID(be.Uint64(k[9:])) }
