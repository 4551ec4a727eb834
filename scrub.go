package storage

import (
	"cmp"
	"time"
)

// MaxLostListed bounds StoreScrub.Lost.
const MaxLostListed = 16

// StoreScrub says what the scrub of a store has found: whether the disk still gives back what was written.
type StoreScrub struct {
	// Interval is how often a pass begins; 0: none does.
	Interval time.Duration `json:"interval_ns,omitempty"`
	// LastPass is when a pass over all of the store has ended last; zero: none has yet. Begun is when the present one has begun; zero: none is
	// under way. Part of it is done, 0 to 1.
	LastPass time.Time `json:"last_pass,omitzero"`
	Begun    time.Time `json:"begun,omitzero"`
	Part     float64   `json:"part,omitempty"`
	// MendedBlocks were written anew from another replica since the node has started. WaitingBlocks are damaged, and not written anew
	// yet. LostBlocks are those that no replica can read.
	MendedBlocks  int64 `json:"mended_blocks,omitempty"`
	WaitingBlocks int64 `json:"waiting_blocks,omitempty"`
	LostBlocks    int64 `json:"lost_blocks,omitempty"`
	// DamagedPages of the tables cannot be decoded.
	DamagedPages int64 `json:"damaged_pages,omitempty"`
	// DamagedSegments are not as they were written, and not empty yet.
	DamagedSegments int64 `json:"damaged_segments,omitempty"`
	// Lost are the first of the lost blocks.
	Lost []LostBlock `json:"lost,omitempty"`
}

// Known reports whether the fields say anything: older nodes do not tell, nor does a store that is never scrubbed and has met no damage.
func (s StoreScrub) Known() bool {
	return s.Interval > 0 || !s.LastPass.IsZero() || !s.Begun.IsZero() || s.MendedBlocks+s.WaitingBlocks+s.LostBlocks+s.DamagedSegments > 0
}

// LostBlock is a block that no replica of its group can read.
type LostBlock struct {
	Group  GroupID     `json:"group"`
	Volume VolumeID    `json:"volume"`
	Extent ExtentIndex `json:"extent"`
	Block  int         `json:"block"` // of the extent
}

// OffsetBytes is where the block lies in its volume.
func (b LostBlock) OffsetBytes() int64 { return int64(b.Extent)*ExtentSize + int64(b.Block)*BlockSize }

// Compare orders blocks by volume and place.
func (b LostBlock) Compare(c LostBlock) int {
	return cmp.Or(cmp.Compare(b.Volume, c.Volume), cmp.Compare(b.Extent, c.Extent), cmp.Compare(b.Block, c.Block), cmp.Compare(b.Group, c.Group))
}
