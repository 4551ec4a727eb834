package table

import (
	"encoding/binary"
	"slices"

	storage "github.com/storaged/storaged"
)

// ManifestHeader is what a puller learns first.
type ManifestHeader struct {
	Checkpoint
	StateParts uint32 // number of parts of the small state
	TotalBytes uint64 // of all blocks, for progress
}

const (
	manifestVersion  = 1
	manifestFixedLen = 1 + 3*8 + 4 + 8 + 4
	maxStateParts    = 1 << 16
)

// Append appends the encoding of the header.
func (h *ManifestHeader) Append(dst []byte) []byte {
	dst = append(dst, manifestVersion)
	for _, n := range []uint64{h.Index, h.Term, h.ConfigIndex} {
		dst = binary.LittleEndian.AppendUint64(dst, n)
	}
	dst = binary.LittleEndian.AppendUint32(dst, h.StateParts)
	dst = binary.LittleEndian.AppendUint64(dst, h.TotalBytes)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(h.Config)))
	return append(dst, h.Config...)
}

// DecodeManifestHeader decodes a header that fills data. It does not keep data.
func DecodeManifestHeader(data []byte) (h ManifestHeader, err error) {
	if len(data) < manifestFixedLen || data[0] != manifestVersion {
		return h, invalid("decode manifest", "%d bytes with an unknown beginning", len(data))
	}
	le := binary.LittleEndian
	h.Index, h.Term, h.ConfigIndex = le.Uint64(data[1:]), le.Uint64(data[9:]), le.Uint64(data[17:])
	h.StateParts, h.TotalBytes = le.Uint32(data[25:]), le.Uint64(data[29:])
	n := le.Uint32(data[37:])
	if n > MaxConfigBytes || len(data) != manifestFixedLen+int(n) || h.StateParts > maxStateParts {
		return ManifestHeader{}, invalid("decode manifest", "%d bytes for a configuration of %d and %d parts", len(data), n, h.StateParts)
	}
	if n > 0 {
		h.Config = slices.Clone(data[manifestFixedLen:])
	}
	return h, nil
}

// AppendStatePart appends a volume to a part of the small state.
func AppendStatePart(part []byte, id storage.VolumeID, v *Volume) []byte {
	value := v.AppendValue(nil, nil)
	part = be.AppendUint64(part, uint64(id))
	part = be.AppendUint32(part, uint32(len(value)))
	return append(part, value...)
}

// DecodeStatePart calls fn with each volume of a part.
func DecodeStatePart(part []byte, fn func(storage.VolumeID, *Volume) error) error {
	for len(part) > 0 {
		if len(part) < 12 {
			return Corrupt("decode state", "%d bytes are left over", len(part))
		}
		id, n := storage.VolumeID(be.Uint64(part)), be.Uint32(part[8:])
		if uint64(n) > uint64(len(part)-12) {
			return Corrupt("decode state", "%d bytes for a volume of %d", len(part)-12, n)
		}
		v, err := decodeVolume(nil, part[12:12+n])
		if err != nil {
			return err
		}
		if err := fn(id, v); err != nil {
			return err
		}
		part = part[12+n:]
	}
	return nil
}
