package transfer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"

	storage "github.com/storaged/storaged"
)

// zeroBuffer is what is written where a server cannot write zeroes by itself; nobody changes it.
var zeroBuffer = make([]byte, 1<<20)

// eachZeroes calls do for n zeroes at off, as many at a time as zeroBuffer holds.
func eachZeroes(off, n int64, do func(p []byte, off int64) error) error {
	for n > 0 {
		part := min(n, int64(len(zeroBuffer)))
		if err := do(zeroBuffer[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// isZero reports whether p holds zeroes only.
func isZero(p []byte) bool {
	for len(p) > len(zeroBuffer) {
		if !bytes.Equal(p[:len(zeroBuffer)], zeroBuffer) {
			return false
		}
		p = p[len(zeroBuffer):]
	}
	return bytes.Equal(p, zeroBuffer[:len(p)])
}

// splitZeroes calls each for the runs of p, which lies at off, in turn: blocks of zeroes and others. Blocks are those of
// the volume; a partial one at an end of p counts by the bytes it has.
func splitZeroes(p []byte, off int64, each func(p []byte, off int64, zero bool) error) error {
	for len(p) > 0 {
		block := func(at int) int { // the end of the block at p[at]
			return min(len(p), at+storage.BlockSize-int((off+int64(at))%storage.BlockSize))
		}
		end := block(0)
		zero := isZero(p[:end])
		for end < len(p) && isZero(p[end:block(end)]) == zero {
			end = block(end)
		}
		if err := each(p[:end], off, zero); err != nil {
			return err
		}
		p, off = p[end:], off+int64(end)
	}
	return nil
}

// Digest hashes the bytes of a transfer in their order; the zero value hashes nothing.
type Digest struct{ h hash.Hash }

// NewDigest returns one that hashes, if on.
func NewDigest(on bool) Digest {
	if !on {
		return Digest{}
	}
	return Digest{sha256.New()}
}

// Data hashes p.
func (d Digest) Data(p []byte) {
	if d.h != nil {
		d.h.Write(p)
	}
}

// Zeroes hashes n zeroes.
func (d Digest) Zeroes(n int64) {
	for d.h != nil && n > 0 {
		part := min(n, int64(len(zeroBuffer)))
		d.h.Write(zeroBuffer[:part])
		n -= part
	}
}

// String returns the sum in hexadecimal, empty when nothing is hashed.
func (d Digest) String() string {
	if d.h == nil {
		return ""
	}
	return hex.EncodeToString(d.h.Sum(nil))
}
