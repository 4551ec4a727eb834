package op

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	storage "github.com/storaged/storaged"
)

// HeadEpoch as a read's epoch asks for the newest version.
const HeadEpoch = storage.Epoch(math.MaxUint64)

// ReadMode says how sure the leader must be before it answers.
type ReadMode uint8

const (
	// ReadDefault is what the node was configured with.
	ReadDefault ReadMode = 0
	// ReadLease trusts the leader's lease.
	ReadLease ReadMode = 1
	// ReadQuorum waits until a majority has answered a request that was sent after the read arrived.
	ReadQuorum ReadMode = 2

	readModeEnd ReadMode = 3
)

// ReadRequest asks for a range of one extent.
type ReadRequest struct {
	Volume     storage.VolumeID
	Extent     storage.ExtentIndex
	Offset     uint32            // bytes from the extent's beginning; any alignment
	Length     uint32            // bytes, at least 1
	Session    storage.SessionID // 0: no session (read-only, import and export)
	Generation storage.Generation
	Epoch      storage.Epoch // the version: newest with an epoch not above; HeadEpoch for the newest
	Mode       ReadMode
}

// ReadRequestLen is the length in bytes of an encoded ReadRequest.
const ReadRequestLen = 48

// Validate returns an error of KindInvalid unless the request may be encoded.
func (r *ReadRequest) Validate() error { return r.validate("read") }

func (r *ReadRequest) validate(what string) error {
	switch {
	case r.Volume == 0:
		return invalid(what, "the volume is zero")
	case r.Mode >= readModeEnd:
		return invalid(what, "unknown mode %d", r.Mode)
	}
	return checkRange(what, r.Offset, r.Length)
}

// Blocks returns the first block of the range and the number of blocks it touches.
func (r *ReadRequest) Blocks() (first, n int) {
	return int(r.Offset / storage.BlockSize), Pieces(r.Offset, r.Length)
}

// Append appends the encoding, of ReadRequestLen bytes.
func (r *ReadRequest) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, Version, byte(r.Mode), 0, 0)
	dst = le.AppendUint32(dst, uint32(r.Extent))
	dst = le.AppendUint32(dst, r.Offset)
	dst = le.AppendUint32(dst, r.Length)
	dst = le.AppendUint64(dst, uint64(r.Volume))
	dst = le.AppendUint64(dst, uint64(r.Session))
	dst = le.AppendUint64(dst, uint64(r.Generation))
	return le.AppendUint64(dst, uint64(r.Epoch))
}

// DecodeReadRequest decodes a request that fills data.
func DecodeReadRequest(data []byte) (r ReadRequest, err error) {
	if err := checkRequest("decode read", data, ReadRequestLen, 0); err != nil {
		return r, err
	}
	r = decodeRead(data)
	return r, r.Validate()
}

// checkRequest checks what requests begin with: their version, a mode, flags, and a zero.
func checkRequest(op string, data []byte, wantLen int, flags byte) error {
	if len(data) != wantLen {
		return invalid(op, "%d bytes, want %d", len(data), wantLen)
	}
	err := checkVersion(op, data[0])
	switch {
	case err != nil:
	case data[2]&^flags != 0:
		err = invalid(op, "unknown flags")
	case data[3] != 0:
		err = invalid(op, "reserved bytes are not zero")
	}
	return err
}

// checkAnswer checks what answers begin with.
func checkAnswer(op string, data []byte, fixedLen int) error {
	if len(data) < fixedLen {
		return invalid(op, "%d bytes are too short", len(data))
	}
	return checkVersion(op, data[0])
}

// decodeRead decodes what read and status requests begin with, all but the version and two bytes of flags.
func decodeRead(data []byte) ReadRequest {
	le := binary.LittleEndian
	return ReadRequest{
		Mode:       ReadMode(data[1]),
		Extent:     storage.ExtentIndex(le.Uint32(data[4:])),
		Offset:     le.Uint32(data[8:]),
		Length:     le.Uint32(data[12:]),
		Volume:     storage.VolumeID(le.Uint64(data[16:])),
		Session:    storage.SessionID(le.Uint64(data[24:])),
		Generation: storage.Generation(le.Uint64(data[32:])),
		Epoch:      storage.Epoch(le.Uint64(data[40:])),
	}
}

// ReadResponse is the header of an answer. The payload after it is the whole blocks that cover the range, holes
// as zeroes; it is empty when every block is a hole.
type ReadResponse struct {
	Sums  []uint32 // crc32c of each whole block; 0 for a hole
	Holes []bool   // len(Holes) == len(Sums): the block is not mapped and reads as zeroes
}

const readResponseFixedLen = 4

// AllHoles reports whether every block is a hole, so that the payload is empty.
func (r *ReadResponse) AllHoles() bool {
	return !slices.Contains(r.Holes, false)
}

// PayloadLen returns the length in bytes of the payload.
func (r *ReadResponse) PayloadLen() int {
	if r.AllHoles() {
		return 0
	}
	return len(r.Sums) * storage.BlockSize
}

// Append appends the encoding. There are at most BlocksPerExtent blocks.
func (r *ReadResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, Version, 0)
	dst = le.AppendUint16(dst, uint16(len(r.Sums)))
	for _, s := range r.Sums {
		dst = le.AppendUint32(dst, s)
	}
	for i := 0; i < len(r.Holes); i += 8 {
		var b byte
		for j, hole := range r.Holes[i:min(i+8, len(r.Holes))] {
			if hole {
				b |= 1 << j
			}
		}
		dst = append(dst, b)
	}
	return dst
}

// Decode decodes a response that fills data into r, reusing its slices. It does not keep data.
func (r *ReadResponse) Decode(data []byte) error {
	if err := checkAnswer("decode read answer", data, readResponseFixedLen); err != nil {
		return err
	}
	le := binary.LittleEndian
	n := int(le.Uint16(data[2:]))
	if data[1] != 0 || n > storage.BlocksPerExtent || len(data) != readResponseFixedLen+4*n+(n+7)/8 {
		return invalid("decode read answer", "%d bytes do not hold %d blocks", len(data), n)
	}
	sums, holes := data[readResponseFixedLen:], data[readResponseFixedLen+4*n:]
	if n%8 != 0 && holes[len(holes)-1]>>(n%8) != 0 {
		return invalid("decode read answer", "bits beyond the last block are set")
	}
	r.Sums, r.Holes = r.Sums[:0], r.Holes[:0]
	for i := range n {
		r.Sums = append(r.Sums, le.Uint32(sums[4*i:]))
		r.Holes = append(r.Holes, holes[i/8]&(1<<(i%8)) != 0)
	}
	return nil
}

// Verify returns an error of KindInvalid unless payload has the length that the header implies, and of KindCorrupt
// unless each block has its sum.
func (r *ReadResponse) Verify(payload []byte) error {
	if len(payload) != r.PayloadLen() {
		return invalid("verify read answer", "the payload has %d bytes, want %d", len(payload), r.PayloadLen())
	}
	if len(payload) == 0 {
		return nil
	}
	for i, sum := range r.Sums {
		if r.Holes[i] {
			continue
		}
		if Sum(payload[i*storage.BlockSize:][:storage.BlockSize]) != sum {
			return storage.E("verify read answer", storage.KindCorrupt, "block", fmt.Errorf("checksum mismatch in block %d of the answer", i))
		}
	}
	return nil
}

// ReadData is an answer to a read with its payload, which may lie in a pooled buffer.
type ReadData struct {
	Header  ReadResponse
	Payload []byte

	release func()
}

// NewReadData returns an answer whose Release calls release once; release may be nil.
func NewReadData(header ReadResponse, payload []byte, release func()) *ReadData {
	return &ReadData{Header: header, Payload: payload, release: release}
}

// Release gives the payload's buffer back. Payload must not be used afterwards. It may be called again.
func (d *ReadData) Release() {
	if d == nil {
		return
	}
	d.Payload = nil
	if f := d.release; f != nil {
		d.release = nil
		f()
	}
}
