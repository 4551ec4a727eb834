package op

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	storage "github.com/storaged/storaged"
)

// Kind says what an operation does to a group. Zero is not valid.
type Kind uint8

// The kinds of operations.
const (
	// Write stores the payload at Offset of an extent. A client's request may begin and end within a block; an
	// entry is always whole blocks (the leader merges).
	Write Kind = 1
	// Clear makes whole blocks unmapped, so that they read as zeroes (DISCARD, WRITE_ZEROES). It carries no payload
	// and is never unaligned: the edges of an unaligned request are writes of zeroes.
	Clear Kind = 2
	// OpenSession makes Session known for Volume, under Generation and Epoch.
	OpenSession Kind = 3
	// CloseSession ends Session; the result carries its Window.
	CloseSession Kind = 4
	// SetEpoch raises the volume's epoch. Seq is the index of a catalog in which the volume was there.
	SetEpoch Kind = 5
	// SetGeneration raises the volume's generation. Seq as in SetEpoch.
	SetGeneration Kind = 6
	// DeleteVolume refuses the volume for ever and frees what it holds. Seq is the index of the catalog that it was made
	// from, as in SetEpoch and SetGeneration.
	DeleteVolume Kind = 7
	// Digest has each replica note what an extent holds at the index of this entry, so that replicas are compared. Seq is a random number that
	// names it. It changes nothing, and is applied without a session.
	Digest Kind = 8
	// Noop does nothing; it is applied without a session.
	Noop Kind = 9
	// ForgetDeleted lets the group forget the volumes that it has deleted: those whose deletion was made from an index of the
	// catalog up to Seq. From now on it takes a volume that it does not know for one that may have been deleted: it opens
	// no session up to Session for it, the last that the catalog had given out at Seq, and sets nothing that was made
	// from an index up to Seq. It names no volume.
	ForgetDeleted Kind = 10

	kindEnd Kind = 11
)

var kindNames = [...]string{"invalid", "write", "clear", "open session", "close session", "set epoch", "set generation",
	"delete volume", "digest", "noop", "forget deleted"}

// String returns the kind in words.
func (k Kind) String() string {
	if k < kindEnd {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Flags modify an operation. Unknown flags are refused, so that an old node never half-obeys a new one.
type Flags uint16

const (
	// FlagNoHole on Clear: the client asked for zeroes that stay allocated. It is kept for information: a cleared
	// block is never refused later for want of space other than below the reserve.
	FlagNoHole Flags = 1 << iota

	flagsKnown = FlagNoHole
)

// Version is the first byte of every encoded message of this package.
const Version = 1

// HeaderFixedLen is the length in bytes of an operation's header without its sums.
const HeaderFixedLen = 72

// MaxSums is the largest number of sums one header carries: a write of MaxEntryPayloadBytes that begins and ends
// within a block touches one block more than it fills.
const MaxSums = storage.MaxEntryPayloadBytes/storage.BlockSize + 1

// MaxHeaderLen bounds the length in bytes of every header.
const MaxHeaderLen = HeaderFixedLen + 4*MaxSums

// Op is one operation on one volume's part in a group. Fields that a kind does not need are carried and ignored.
type Op struct {
	Kind       Kind
	Flags      Flags
	Volume     storage.VolumeID
	Extent     storage.ExtentIndex
	Offset     uint32 // bytes from the extent's beginning
	Length     uint32 // bytes; Offset+Length <= ExtentSize; 0 but for Write and Clear
	Session    storage.SessionID
	Seq        uint64 // from 1, dense per (session, group); of other kinds an index of the catalog, see there
	Epoch      storage.Epoch
	Generation storage.Generation
	// ReadTerm is 0, or the term in which the rest of a merged partial block was read. Apply refuses the entry when
	// it is not the entry's own term.
	ReadTerm uint64
	// Sums is the crc32c of each piece of a write: the payload is cut at multiples of BlockSize of the extent. It is
	// what AppendHeader encodes. Decode leaves it nil (the sums stay where they are): use SumAt.
	Sums []uint32

	rawSums []byte // decoded sums, an alias of the decoded bytes
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum returns the crc32c of p.
func Sum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// HeaderLen returns the length in bytes of a header of that kind with nSums sums, which is where the payload
// begins in an entry's data.
func HeaderLen(_ Kind, nSums int) int { return HeaderFixedLen + 4*nSums }

// Pieces returns the number of blocks that [offset, offset+length) of an extent touches.
func Pieces(offset, length uint32) int {
	if length == 0 {
		return 0
	}
	first := uint64(offset) / storage.BlockSize
	end := (uint64(offset) + uint64(length) + storage.BlockSize - 1) / storage.BlockSize
	return int(end - first)
}

// AppendSums appends the crc32c of each piece of a payload that lies at offset of its extent.
func AppendSums(dst []uint32, offset uint32, payload []byte) []uint32 {
	for len(payload) > 0 {
		n := min(storage.BlockSize-int(offset%storage.BlockSize), len(payload))
		dst = append(dst, Sum(payload[:n]))
		payload, offset = payload[n:], offset+uint32(n)
	}
	return dst
}

// NumSums returns the number of sums.
func (o *Op) NumSums() int {
	if o.rawSums != nil {
		return len(o.rawSums) / 4
	}
	return len(o.Sums)
}

// SumAt returns sum i, of an operation that was made or decoded.
func (o *Op) SumAt(i int) uint32 {
	if o.rawSums != nil {
		return binary.LittleEndian.Uint32(o.rawSums[4*i:])
	}
	return o.Sums[i]
}

// Aligned reports whether the range is whole blocks, as that of an entry must be.
func (o *Op) Aligned() bool {
	return o.Offset%storage.BlockSize == 0 && o.Length%storage.BlockSize == 0
}

// Blocks returns the first block of the range and the number of blocks it touches.
func (o *Op) Blocks() (first, n int) {
	return int(o.Offset / storage.BlockSize), Pieces(o.Offset, o.Length)
}

// HeaderLen returns the length of the encoded header.
func (o *Op) HeaderLen() int { return HeaderLen(o.Kind, o.NumSums()) }

// Verify returns an error of KindCorrupt unless payload has the operation's sums.
func (o *Op) Verify(payload []byte) error {
	if len(payload) != int(o.Length) {
		return invalid("verify", "the payload has %d bytes, the header says %d", len(payload), o.Length)
	}
	at := o.Offset
	for i := range o.NumSums() {
		n := min(storage.BlockSize-int(at%storage.BlockSize), len(payload))
		if Sum(payload[:n]) != o.SumAt(i) {
			return storage.E("verify", storage.KindCorrupt, "payload", fmt.Errorf("checksum mismatch at byte %d of extent %d of volume %d",
				at, o.Extent, o.Volume))
		}
		payload, at = payload[n:], at+uint32(n)
	}
	return nil
}

// Validate returns an error of KindInvalid (KindUnsupported for unknown kinds and flags) unless the operation may
// be encoded. Decode has called it.
func (o *Op) Validate() error {
	switch {
	case o.Kind == 0:
		return invalid("operation", "the kind is zero")
	case o.Kind >= kindEnd:
		return storage.E("operation", storage.KindUnsupported, o.Kind.String(), nil)
	case o.Flags&^flagsKnown != 0:
		return storage.E("operation", storage.KindUnsupported, fmt.Sprintf("flags %#x", uint16(o.Flags)), nil)
	case o.Kind == ForgetDeleted:
		if o.Volume != 0 || o.Seq == 0 {
			return invalid(o.Kind.String(), "it names volume %d, and index %d of the catalog", o.Volume, o.Seq)
		}
	case o.Kind != Noop && o.Volume == 0:
		return invalid(o.Kind.String(), "the volume is zero")
	case (o.Kind <= CloseSession) && o.Session == 0:
		return invalid(o.Kind.String(), "the session is zero")
	}
	if o.Kind != Write && o.Kind != Clear {
		if o.Length != 0 || o.NumSums() != 0 {
			return invalid(o.Kind.String(), "it carries a range of %d bytes and %d sums", o.Length, o.NumSums())
		}
		return nil
	}
	return o.validateRange()
}

func (o *Op) validateRange() error {
	if o.Seq == 0 {
		return invalid(o.Kind.String(), "the sequence number is zero")
	}
	if err := checkRange(o.Kind.String(), o.Offset, o.Length); err != nil {
		return err
	}
	switch {
	case o.Kind == Clear && !o.Aligned():
		return invalid("clear", "the range at %d of %d bytes is not whole blocks", o.Offset, o.Length)
	case o.Kind == Clear && o.NumSums() != 0:
		return invalid("clear", "it carries %d sums", o.NumSums())
	case o.Kind == Write && o.Length > storage.MaxEntryPayloadBytes:
		return invalid("write", "%d bytes; at most %d are allowed", o.Length, storage.MaxEntryPayloadBytes)
	case o.Kind == Write && o.NumSums() != Pieces(o.Offset, o.Length):
		return invalid("write", "it carries %d sums for %d pieces", o.NumSums(), Pieces(o.Offset, o.Length))
	}
	return nil
}

// AppendHeader appends the encoded header to dst. The payload follows it immediately. The operation must be valid.
func (o *Op) AppendHeader(dst []byte) []byte {
	base := len(dst)
	n := o.NumSums()
	le := binary.LittleEndian
	dst = append(dst, Version, byte(o.Kind))
	dst = le.AppendUint16(dst, uint16(o.Flags))
	dst = le.AppendUint16(dst, uint16(n))
	dst = le.AppendUint16(dst, 0)
	dst = le.AppendUint64(dst, uint64(o.Volume))
	dst = le.AppendUint64(dst, uint64(o.Session))
	dst = le.AppendUint64(dst, o.Seq)
	dst = le.AppendUint64(dst, uint64(o.Epoch))
	dst = le.AppendUint64(dst, uint64(o.Generation))
	dst = le.AppendUint64(dst, o.ReadTerm)
	dst = le.AppendUint32(dst, uint32(o.Extent))
	dst = le.AppendUint32(dst, o.Offset)
	dst = le.AppendUint32(dst, o.Length)
	dst = le.AppendUint32(dst, 0)
	if o.rawSums != nil {
		dst = append(dst, o.rawSums...)
	} else {
		for _, s := range o.Sums {
			dst = le.AppendUint32(dst, s)
		}
	}
	le.PutUint32(dst[base+HeaderFixedLen-4:], headerCRC(dst[base:]))
	return dst
}

// headerCRC covers the header but for the four bytes that hold it.
func headerCRC(h []byte) uint32 {
	c := crc32.Update(0, castagnoli, h[:HeaderFixedLen-4])
	return crc32.Update(c, castagnoli, h[HeaderFixedLen:])
}

// DecodeHeader decodes the header at the beginning of data and returns its length. It allocates nothing: the
// operation refers to data for its sums. Errors are of KindInvalid, or KindUnsupported for a message of a later
// version, or KindCorrupt for a header whose checksum does not match.
func DecodeHeader(data []byte) (o Op, headerLen int, err error) {
	if len(data) < HeaderFixedLen {
		return Op{}, 0, invalid("decode operation", "%d bytes are too short for a header", len(data))
	}
	if err := checkVersion("decode operation", data[0]); err != nil {
		return Op{}, 0, err
	}
	le := binary.LittleEndian
	n := int(le.Uint16(data[4:]))
	headerLen = HeaderFixedLen + 4*n
	switch {
	case n > MaxSums:
		return Op{}, 0, invalid("decode operation", "%d sums; at most %d are allowed", n, MaxSums)
	case le.Uint16(data[6:]) != 0:
		return Op{}, 0, invalid("decode operation", "reserved bytes are not zero")
	case len(data) < headerLen:
		return Op{}, 0, invalid("decode operation", "%d bytes are too short for %d sums", len(data), n)
	case headerCRC(data[:headerLen]) != le.Uint32(data[HeaderFixedLen-4:]):
		return Op{}, 0, storage.E("decode operation", storage.KindCorrupt, "header", fmt.Errorf("checksum mismatch"))
	}
	o = Op{
		Kind:       Kind(data[1]),
		Flags:      Flags(le.Uint16(data[2:])),
		Volume:     storage.VolumeID(le.Uint64(data[8:])),
		Session:    storage.SessionID(le.Uint64(data[16:])),
		Seq:        le.Uint64(data[24:]),
		Epoch:      storage.Epoch(le.Uint64(data[32:])),
		Generation: storage.Generation(le.Uint64(data[40:])),
		ReadTerm:   le.Uint64(data[48:]),
		Extent:     storage.ExtentIndex(le.Uint32(data[56:])),
		Offset:     le.Uint32(data[60:]),
		Length:     le.Uint32(data[64:]),
	}
	if n > 0 {
		o.rawSums = data[HeaderFixedLen:headerLen:headerLen]
	}
	if err := o.Validate(); err != nil {
		return Op{}, 0, err
	}
	return o, headerLen, nil
}

// Decode decodes an entry's data: a header and the payload after it, which must have exactly the length that the
// header says. The payload and the sums alias data. The payload's checksums are not verified: see Verify.
func Decode(data []byte) (o Op, payload []byte, err error) {
	o, n, err := DecodeHeader(data)
	if err != nil {
		return Op{}, nil, err
	}
	payload = data[n:]
	want := 0
	if o.Kind == Write {
		want = int(o.Length)
	}
	if len(payload) != want {
		return Op{}, nil, invalid("decode operation", "the payload has %d bytes, the header says %d", len(payload), want)
	}
	return o, payload, nil
}

// AlignedBytes is the payload, in bytes, from which it pays to have blocks where a page of memory begins, and where one of a
// file does.
const AlignedBytes = 64 << 10

// BlocksOf returns how many bytes of blocks the data of an entry of n bytes ends with, as far as its length tells, if there are
// at least AlignedBytes of them; otherwise 0. An entry of another kind may have such a length: it says where to put an entry in
// memory, and no more.
func BlocksOf(n int) int {
	const each = 4 + storage.BlockSize // with its sum
	if n -= HeaderFixedLen; n < 0 || n%each != 0 || n/each > MaxSums {
		return 0
	}
	if blocks := n / each * storage.BlockSize; blocks >= AlignedBytes {
		return blocks
	}
	return 0
}

// EntrySums returns the sums of an entry's blocks, encoded one after another as they lie in data, if the entry's payload is
// whole blocks; otherwise nil. It looks at lengths only: the entry must have been verified (Decode and Op.Verify).
func EntrySums(data []byte) []byte {
	if len(data) < HeaderFixedLen || Kind(data[1]) != Write {
		return nil
	}
	n := int(binary.LittleEndian.Uint16(data[4:]))
	if n == 0 || len(data) != HeaderFixedLen+4*n+n*storage.BlockSize {
		return nil
	}
	return data[HeaderFixedLen : HeaderFixedLen+4*n]
}

// VerifyEntry returns an error unless data is an entry as its proposer made it: an operation that this version knows, and,
// for a write, whole blocks that have the operation's sums. It is what a replica asks of an entry before it stores it, one
// pass over the payload. Errors are those of Decode, and KindCorrupt for a payload with another sum.
func VerifyEntry(data []byte) error {
	o, payload, err := Decode(data)
	if err != nil || o.Kind != Write {
		return err
	}
	if !o.Aligned() {
		return invalid("verify", "an entry with a write at %d of %d bytes, which is not whole blocks", o.Offset, o.Length)
	}
	return o.Verify(payload)
}

func checkVersion(op string, v byte) error {
	switch v {
	case Version:
		return nil
	case 0:
		return invalid(op, "the version is zero")
	}
	return storage.E(op, storage.KindUnsupported, fmt.Sprintf("version %d", v), nil)
}

func checkRange(op string, offset, length uint32) error {
	if length == 0 || uint64(offset)+uint64(length) > storage.ExtentSize {
		return invalid(op, "the range at %d of %d bytes is empty or leaves the extent", offset, length)
	}
	return nil
}

func invalid(op, format string, args ...any) error {
	return &storage.Error{Op: op, Kind: storage.KindInvalid, Err: fmt.Errorf(format, args...)}
}
