package segment

import (
	"fmt"

	storage "github.com/storaged/storaged"
)

// SegmentNo numbers a use of a segment file. Numbers ascend from 1; a file gets a new one on every reuse, and no
// number is used twice in a log.
type SegmentNo uint32

// String returns the number in decimal.
func (n SegmentNo) String() string { return fmt.Sprintf("%d", uint32(n)) }

// Position is a place in the log: the segment number in the upper 32 bits, the byte offset in the segment in the
// lower. Positions ascend in append order and are never used twice. Zero is before everything.
type Position uint64

// PositionOf returns the position of a byte of a segment.
func PositionOf(no SegmentNo, offset uint32) Position {
	return Position(uint64(no)<<32 | uint64(offset))
}

// Segment returns the number of the segment.
func (p Position) Segment() SegmentNo { return SegmentNo(p >> 32) }

// Offset returns the byte offset in the segment.
func (p Position) Offset() uint32 { return uint32(p) }

// String returns "segment:offset".
func (p Position) String() string { return fmt.Sprintf("%d:%d", p.Segment(), p.Offset()) }

// GroupKey names one replica's log: the group and the incarnation of this store's replica of it. A later incarnation
// never sees the records of an earlier one.
type GroupKey struct {
	Group       storage.GroupID
	Incarnation storage.Incarnation
}

// String returns "group/incarnation".
func (k GroupKey) String() string { return fmt.Sprintf("%d/%d", k.Group, k.Incarnation) }

// Entry is one entry of a group's Raft log.
type Entry struct {
	Index, Term uint64
	// Type is the Raft library's type of the entry; opaque here.
	Type uint8
	// AppendedAt is in nanoseconds of Unix time; opaque here.
	AppendedAt int64
	// Extensions and Data are kept by reference after Append and must not be modified. What Get returns must not
	// be modified either.
	Extensions []byte
	Data       []byte
	// Cold says that nobody is expected to read Data from this disk soon, as on a follower. Large data is then not left in the page
	// cache: if it ends with blocks that lie where direct I/O can take them (AlignedBytes), it is written around it. Get does not tell.
	Cold bool
	// BlockSums, if given, are the crc32c of the blocks of storage.BlockSize that Data ends with, in order, 4 bytes each,
	// little-endian. The caller has verified them: the record's checksum is made from them without another pass over the
	// blocks, so that what happens to a block between the two shows when the record is read. Get does not tell.
	BlockSums []byte
}

// AlignedBytes is from how many bytes of blocks on (Entry.BlockSums) a cold entry is written around the page cache, from where they
// lie, if they begin at a page of memory and the log may write aligned records (Config.Aligned).
const AlignedBytes = 64 << 10

// GroupStart is what a durable checkpoint says about one group.
type GroupStart struct {
	Key GroupKey
	// AppliedIndex and AppliedTerm are of the last entry that the checkpoint holds. Entries at or below it are not
	// in the log after a restart.
	AppliedIndex, AppliedTerm uint64
	// From is the position of the first record the group needs, as NextNeeded returned it; 0 is the log's
	// beginning. It is also taken as proof that everything before it was durable.
	From Position
}

// Damage says that records which were once durable are lost or unreadable, and that the replica may therefore have
// forgotten what it acknowledged. It must not vote and must come back as a new member.
type Damage struct {
	Key GroupKey
	// At is where the damage begins.
	At Position
	// Reason is in words, for people.
	Reason string
}

// SegmentState says what a segment is used for.
type SegmentState uint8

// The states of a segment.
const (
	// SegmentFree: ready, or being made ready, for new records; nothing in it is needed.
	SegmentFree SegmentState = iota
	// SegmentOpen: records are appended to it, or it has records that are not durable yet.
	SegmentOpen
	// SegmentSealed: no record will be added.
	SegmentSealed
)

// SegmentInfo describes one segment.
type SegmentInfo struct {
	No SegmentNo
	// UsedBytes is the part of the file that holds records, as far as it is known: of segments sealed before the
	// last start it is the size of the file.
	UsedBytes int64
	// SizeBytes is the size of the file.
	SizeBytes int64
	State     SegmentState
}
