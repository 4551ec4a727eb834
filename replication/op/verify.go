package op

import (
	"encoding/hex"
	"fmt"

	storage "github.com/storaged/storaged"
)

// MaxVerifyExtents bounds the extents that one answer to a VerifyRequest has looked at.
const MaxVerifyExtents = 64

// VerifyRequest asks a replica to check what it holds of a volume's extents [First, End), whoever leads, or, with Token, what it held of
// one extent when it applied a Digest.
type VerifyRequest struct {
	Volume storage.VolumeID    `json:"volume"`
	First  storage.ExtentIndex `json:"first"`
	End    storage.ExtentIndex `json:"end"`
	// RateBytes are read in a second at most, together with what others have verified on the same disk; 0: as fast as its scrub may.
	RateBytes int64 `json:"rate_bytes,omitempty"`
	// Token names a Digest, which carries it as Seq; 0: none.
	Token uint64 `json:"token,omitempty"`
}

// Validate returns an error of KindInvalid for a request that cannot be answered.
func (r *VerifyRequest) Validate() error {
	if r.Volume == 0 || r.End < r.First || r.RateBytes < 0 {
		return storage.E("verify", storage.KindInvalid, fmt.Sprintf("volume %d", r.Volume), fmt.Errorf("extents %d to %d, %d bytes a second", r.First, r.End, r.RateBytes))
	}
	return nil
}

// VerifyAnswer is what a replica has found. Every block of the extents [First, Next) was read from its disk and compared with the table.
type VerifyAnswer struct {
	// Busy: another volume is being verified on the same disk, and nothing was done.
	Busy bool                `json:"busy,omitempty"`
	Next storage.ExtentIndex `json:"next"`
	// Extents are those that ever held anything, in ascending order.
	Extents []ExtentContents `json:"extents,omitempty"`
	// Bytes were read in Blocks. Of those that were damaged Mended were written anew from another replica, Lost no replica can read, and
	// Waiting one may have that does not answer or has other bytes there.
	Bytes   int64 `json:"bytes"`
	Blocks  int64 `json:"blocks"`
	Mended  int64 `json:"mended,omitempty"`
	Lost    int64 `json:"lost,omitempty"`
	Waiting int64 `json:"waiting,omitempty"`
	// DamagedPages of the tables could not be read: what they map was not looked at.
	DamagedPages int64 `json:"damaged_pages,omitempty"`
}

// ExtentContents says what the blocks of an extent are. With Damaged it is not known, because of a damaged page of the tables.
type ExtentContents struct {
	Extent   storage.ExtentIndex `json:"extent"`
	Contents Contents            `json:"contents"`
	Damaged  bool                `json:"damaged,omitempty"`
	// Index is that of the Digest, where one was asked for.
	Index uint64 `json:"index,omitempty"`
}

// Contents is a digest of which blocks an extent maps in each of its versions, and of their crc32c. Replicas of a group have the same at the
// same index. The zero Contents maps nothing.
type Contents [16]byte

// String returns the digest in hexadecimal digits.
func (c Contents) String() string { return hex.EncodeToString(c[:]) }

// MarshalText implements encoding.TextMarshaler.
func (c Contents) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Contents) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(c[:], b[:min(len(b), 2*len(c))]); err != nil || n != len(c) || len(b) != 2*len(c) {
		return storage.E("decode contents", storage.KindInvalid, "", fmt.Errorf("%q is not %d hexadecimal digits", b, 2*len(c)))
	}
	return nil
}
