package table

import (
	"encoding/binary"
	"math"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// Staged is what is stored under KeyStaged: a table set that a pull fills, and that no replica has yet.
type Staged struct {
	Index     uint64 // of the manifest that was pulled
	AtSeconds uint64 // when the newest commit point was made, since 1970
}

const (
	stagedVersion = 1
	stagedLen     = 1 + 8 + 8
	stagedKeyLen  = 1 + 4 + 4 + 8
)

// StagedKey returns the key of a set that is staged for a replica.
func StagedKey(key segment.GroupKey, set SetID) []byte {
	return be.AppendUint64(GroupKey(KeyStaged, key), uint64(set))
}

// StagedValue returns the value under which s is stored at key.
func StagedValue(key []byte, s Staged) []byte {
	le := binary.LittleEndian
	v := le.AppendUint64([]byte{stagedVersion}, s.Index)
	return Seal(key, le.AppendUint64(v, s.AtSeconds))
}

// DecodeStaged decodes a key made by StagedKey, with its value. The error is of KindCorrupt.
func DecodeStaged(key, value []byte) (replica segment.GroupKey, set SetID, s Staged, err error) {
	body, err := UnsealLen(key, value, stagedKeyLen, stagedLen)
	if err != nil {
		return replica, 0, s, Corrupt("decode staged set", "key %x: %w", key, err)
	}
	le := binary.LittleEndian
	seconds := le.Uint64(body[9:])
	if body[0] != stagedVersion || seconds > math.MaxInt32<<8 {
		return replica, 0, s, Corrupt("decode staged set", "version %d, second %d", body[0], seconds)
	}
	replica = segment.GroupKey{Group: storage.GroupID(be.Uint32(key[1:])), Incarnation: storage.Incarnation(be.Uint32(key[5:]))}
	return replica, SetID(be.Uint64(key[9:])), Staged{Index: le.Uint64(body[1:]), AtSeconds: seconds}, nil
}
