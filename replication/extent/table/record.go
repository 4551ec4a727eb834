package table

import (
	"encoding/binary"
	"fmt"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

const (
	groupVersion  = 1
	groupFixedLen = 1 + 5*8 + 4
	// MaxConfigBytes bounds the configuration that a checkpoint keeps.
	MaxConfigBytes = 1 << 20
)

// Checkpoint is what is durable of a group beside its tables.
type Checkpoint struct {
	// Index and Term are of the last entry it holds; 0 for a new replica.
	Index, Term uint64
	// ConfigIndex and Config are the group's configuration at Index; opaque here.
	ConfigIndex uint64
	Config      []byte
}

// GroupRecord is what is stored under KeyGroup.
type GroupRecord struct {
	Set  SetID
	From segment.Position // see segment.GroupStart.From
	Checkpoint
}

// AppendValue appends the value under which the record is stored at key.
func (r *GroupRecord) AppendValue(dst, key []byte) []byte {
	base := len(dst)
	le := binary.LittleEndian
	dst = append(dst, groupVersion)
	for _, n := range []uint64{uint64(r.Set), uint64(r.From), r.Index, r.Term, r.ConfigIndex} {
		dst = le.AppendUint64(dst, n)
	}
	dst = le.AppendUint32(dst, uint32(len(r.Config)))
	dst = append(dst, r.Config...)
	return append(dst[:base], Seal(key, dst[base:])...)
}

// DecodeGroupRecord decodes the value stored at key.
func DecodeGroupRecord(key, value []byte) (r GroupRecord, err error) {
	body, err := Unseal(key, value)
	if err != nil {
		return GroupRecord{}, Corrupt("decode group", "%w", err)
	}
	if len(body) < groupFixedLen || body[0] != groupVersion {
		return GroupRecord{}, Corrupt("decode group", "%d bytes with an unknown beginning", len(body))
	}
	le := binary.LittleEndian
	n := le.Uint32(body[41:])
	if n > MaxConfigBytes || len(body) != groupFixedLen+int(n) {
		return GroupRecord{}, Corrupt("decode group", "%d bytes for a configuration of %d", len(body), n)
	}
	r = GroupRecord{Set: SetID(le.Uint64(body[1:])), From: segment.Position(le.Uint64(body[9:])),
		Checkpoint: Checkpoint{Index: le.Uint64(body[17:]), Term: le.Uint64(body[25:]), ConfigIndex: le.Uint64(body[33:])}}
	if n > 0 {
		r.Config = append([]byte(nil), body[groupFixedLen:]...)
	}
	return r, nil
}

const (
	liveOneLen  = 8 // one number for both
	liveTwoLen  = 1 + 2*8
	liveVersion = 2 // of the second form; the first has none
)

// LiveValue returns the value of the live count stored at key: two numbers, or in the older form one, which both are.
func LiveValue(key []byte, n Count, byEpoch bool) []byte {
	le := binary.LittleEndian
	if !byEpoch {
		return Seal(key, le.AppendUint64(nil, uint64(n.Refs)))
	}
	return Seal(key, le.AppendUint64(le.AppendUint64([]byte{liveVersion}, uint64(n.Refs)), uint64(n.Own)))
}

// DecodeLive decodes a live count with its key.
func DecodeLive(key, value []byte) (set SetID, no segment.SegmentNo, n Count, err error) {
	body, err := UnsealLen(key, value, 13, AnyLen)
	if err != nil {
		return 0, 0, Count{}, Corrupt("decode live count", "key %x: %w", key, err)
	}
	le := binary.LittleEndian
	switch {
	case len(body) == liveOneLen:
		n.Refs = int64(le.Uint64(body))
		n.Own = n.Refs
	case len(body) == liveTwoLen && body[0] == liveVersion:
		n = Count{Refs: int64(le.Uint64(body[1:])), Own: int64(le.Uint64(body[9:]))}
	default:
		return 0, 0, Count{}, Corrupt("decode live count", "%d bytes, not %d, nor %d that begin with %d", len(body), liveOneLen, liveTwoLen, liveVersion)
	}
	if n.Refs <= 0 || n.Own < 0 || n.Own > n.Refs {
		return 0, 0, Count{}, Corrupt("decode live count", "%d references to %d blocks", n.Refs, n.Own)
	}
	return SetID(be.Uint64(key[1:])), segment.SegmentNo(be.Uint32(key[9:])), n, nil
}

// Corrupt returns an error of KindCorrupt: what is stored is not what was written.
func Corrupt(op, format string, args ...any) error {
	return &storage.Error{Op: op, Kind: storage.KindCorrupt, Err: fmt.Errorf(format, args...)}
}

func invalid(op, format string, args ...any) error {
	return &storage.Error{Op: op, Kind: storage.KindInvalid, Err: fmt.Errorf(format, args...)}
}
