package op

import (
	"encoding/binary"

	storage "github.com/storaged/storaged"
)

// StatusRequest asks which blocks of a range of one extent are mapped, and which changed since a snapshot.
type StatusRequest struct {
	ReadRequest      // the range, and the version
	Dirty       bool // compare with the version at Since and set RunDirty
	Since       storage.Epoch
}

// StatusRequestLen is the length in bytes of an encoded StatusRequest.
const StatusRequestLen = ReadRequestLen + 8

const statusDirty = 1

// Validate returns an error of KindInvalid unless the request may be encoded.
func (r *StatusRequest) Validate() error { return r.validate("status") }

// Append appends the encoding, of StatusRequestLen bytes.
func (r *StatusRequest) Append(dst []byte) []byte {
	base := len(dst)
	dst = r.ReadRequest.Append(dst)
	if r.Dirty {
		dst[base+2] = statusDirty
	}
	return binary.LittleEndian.AppendUint64(dst, uint64(r.Since))
}

// DecodeStatusRequest decodes a request that fills data.
func DecodeStatusRequest(data []byte) (r StatusRequest, err error) {
	if err := checkRequest("decode status", data, StatusRequestLen, statusDirty); err != nil {
		return r, err
	}
	r = StatusRequest{ReadRequest: decodeRead(data), Dirty: data[2] != 0, Since: storage.Epoch(binary.LittleEndian.Uint64(data[ReadRequestLen:]))}
	return r, r.Validate()
}

// RunFlags describe the blocks of a Run.
type RunFlags uint32

// The flags of a run. Exactly one of RunAllocated and RunHole is set.
const (
	RunAllocated RunFlags = 1 << iota // the blocks are mapped
	RunHole                           // the blocks are not mapped
	RunZero                           // the blocks read as zeroes
	RunDirty                          // the blocks differ from the version asked for

	runFlagsKnown = RunAllocated | RunHole | RunZero | RunDirty
)

// Run is a part of the range asked for with the same flags throughout. The runs of an answer cover exactly the range.
type Run struct {
	Length uint32 // bytes, at least 1
	Flags  RunFlags
}

const (
	statusResponseFixedLen = 4
	runLen                 = 8
)

// StatusResponse is the answer to a StatusRequest.
type StatusResponse struct {
	Runs []Run // at most BlocksPerExtent
}

// Append appends the encoding.
func (r *StatusResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, Version, 0)
	dst = le.AppendUint16(dst, uint16(len(r.Runs)))
	for _, run := range r.Runs {
		dst = le.AppendUint32(dst, run.Length)
		dst = le.AppendUint32(dst, uint32(run.Flags))
	}
	return dst
}

// DecodeStatusResponse decodes an answer that fills data. It does not keep data.
func DecodeStatusResponse(data []byte) (r StatusResponse, err error) {
	if err := checkAnswer("decode status answer", data, statusResponseFixedLen); err != nil {
		return r, err
	}
	le := binary.LittleEndian
	n := int(le.Uint16(data[2:]))
	if data[1] != 0 || n > storage.BlocksPerExtent || len(data) != statusResponseFixedLen+runLen*n {
		return StatusResponse{}, invalid("decode status answer", "%d bytes do not hold %d runs", len(data), n)
	}
	if n == 0 {
		return StatusResponse{}, nil
	}
	r.Runs = make([]Run, n)
	total := uint64(0)
	for i := range r.Runs {
		p := data[statusResponseFixedLen+runLen*i:]
		run := Run{Length: le.Uint32(p), Flags: RunFlags(le.Uint32(p[4:]))}
		if run.Length == 0 || run.Flags&^runFlagsKnown != 0 {
			return StatusResponse{}, invalid("decode status answer", "run %d has %d bytes and flags %#x", i, run.Length, run.Flags)
		}
		total += uint64(run.Length)
		r.Runs[i] = run
	}
	if total > storage.ExtentSize {
		return StatusResponse{}, invalid("decode status answer", "the runs cover %d bytes", total)
	}
	return r, nil
}
