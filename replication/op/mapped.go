package op

import (
	"encoding/binary"

	storage "github.com/storaged/storaged"
)

// MappedRequest asks which extents of a volume in [First, End) have a block that is mapped in the newest version, of those
// that are in the group.
type MappedRequest struct {
	Volume     storage.VolumeID
	First, End storage.ExtentIndex // First < End
	Session    storage.SessionID   // 0: no session
	Generation storage.Generation
	Mode       ReadMode // not looked at: whatever it is, a majority confirms the leader first
}

// MappedRequestLen is the length in bytes of an encoded MappedRequest.
const MappedRequestLen = 36

// Validate returns an error of KindInvalid unless the request may be encoded.
func (r *MappedRequest) Validate() error {
	switch {
	case r.Volume == 0:
		return invalid("mapped extents", "the volume is zero")
	case r.Mode >= readModeEnd:
		return invalid("mapped extents", "unknown mode %d", r.Mode)
	case r.First >= r.End:
		return invalid("mapped extents", "the range from %d to %d is empty", r.First, r.End)
	}
	return nil
}

// Append appends the encoding, of MappedRequestLen bytes.
func (r *MappedRequest) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, Version, byte(r.Mode), 0, 0)
	dst = le.AppendUint32(dst, uint32(r.First))
	dst = le.AppendUint32(dst, uint32(r.End))
	dst = le.AppendUint64(dst, uint64(r.Volume))
	dst = le.AppendUint64(dst, uint64(r.Session))
	return le.AppendUint64(dst, uint64(r.Generation))
}

// DecodeMappedRequest decodes a request that fills data.
func DecodeMappedRequest(data []byte) (r MappedRequest, err error) {
	if err := checkRequest("decode mapped extents", data, MappedRequestLen, 0); err != nil {
		return r, err
	}
	le := binary.LittleEndian
	r = MappedRequest{
		Mode:       ReadMode(data[1]),
		First:      storage.ExtentIndex(le.Uint32(data[4:])),
		End:        storage.ExtentIndex(le.Uint32(data[8:])),
		Volume:     storage.VolumeID(le.Uint64(data[12:])),
		Session:    storage.SessionID(le.Uint64(data[20:])),
		Generation: storage.Generation(le.Uint64(data[28:])),
	}
	return r, r.Validate()
}

// MaxMappedExtents bounds the extents that one answer names.
const MaxMappedExtents = 1024

// MappedResponse is the answer to a MappedRequest: every extent in [First, Next) with a mapped block. First < Next; an
// answer that stops before End is asked for again from Next on.
type MappedResponse struct {
	Next    storage.ExtentIndex
	Extents []storage.ExtentIndex // ascending, below Next; at most MaxMappedExtents
}

const mappedResponseFixedLen = 8

// Append appends the encoding.
func (r *MappedResponse) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, Version, 0)
	dst = le.AppendUint16(dst, uint16(len(r.Extents)))
	dst = le.AppendUint32(dst, uint32(r.Next))
	for _, x := range r.Extents {
		dst = le.AppendUint32(dst, uint32(x))
	}
	return dst
}

// DecodeMappedResponse decodes an answer that fills data. It does not keep data.
func DecodeMappedResponse(data []byte) (r MappedResponse, err error) {
	if err := checkAnswer("decode mapped extents' answer", data, mappedResponseFixedLen); err != nil {
		return r, err
	}
	le := binary.LittleEndian
	n := int(le.Uint16(data[2:]))
	if data[1] != 0 || n > MaxMappedExtents || len(data) != mappedResponseFixedLen+4*n {
		return MappedResponse{}, invalid("decode mapped extents' answer", "%d bytes do not hold %d extents", len(data), n)
	}
	r.Next = storage.ExtentIndex(le.Uint32(data[4:]))
	if n == 0 {
		return r, nil
	}
	r.Extents = make([]storage.ExtentIndex, n)
	for i := range r.Extents {
		r.Extents[i] = storage.ExtentIndex(le.Uint32(data[mappedResponseFixedLen+4*i:]))
		if r.Extents[i] >= r.Next || i > 0 && r.Extents[i] <= r.Extents[i-1] {
			return MappedResponse{}, invalid("decode mapped extents' answer", "extent %d is out of order", r.Extents[i])
		}
	}
	return r, nil
}
