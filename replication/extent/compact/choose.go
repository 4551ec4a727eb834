package compact

import (
	"cmp"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// MaxUse is up to which part of a segment may live for it to be a victim. Copies of more would fill as much as they free.
	MaxUse = 0.985
	// idleUse is the same while nobody writes.
	idleUse = 0.75

	// A copy of one block takes a record of its own: header, prefix and padding are 128 bytes. A segment has a header, and a seal.
	copyBytes     = 4<<10 + 128
	segmentMargin = 4<<10 + 64
	// maxRecordBlocks are copied in one record at most.
	maxRecordBlocks = 64

	// shortlist is how many segments are looked at closely before none is said to do.
	shortlist = 32
)

// Capacity returns how many copies of single blocks fit into a segment: what a full one may hold, whatever it was written with.
func Capacity(segmentBytes int64) int64 { return max(1, (segmentBytes-segmentMargin)/copyBytes) }

// RecordBlocks returns how many blocks go into one record of copies at most. What is left at the end of a segment because the next record
// does not fit is less than a segment may lack and be no victim. Otherwise copies would be copied again for ever, and nothing be won.
func RecordBlocks(segmentBytes int64) int {
	lack := int(float64(Capacity(segmentBytes)) * (1 - MaxUse))
	return max(1, min(lack-1, maxRecordBlocks))
}

// PackedBytes returns how many bytes of segments so many blocks take that were all moved.
func PackedBytes(blocks, segmentBytes int64) int64 {
	n := Capacity(segmentBytes)
	return (blocks + n - 1) / n * segmentBytes
}

// UnpackedBytes returns how many bytes of blocks so many bytes of segments hold that were all moved.
func UnpackedBytes(bytes, segmentBytes int64) int64 {
	n := Capacity(segmentBytes)
	return (bytes/segmentBytes*n + bytes%segmentBytes*n/segmentBytes) * storage.BlockSize
}

// Candidate is a segment with live blocks.
type Candidate struct {
	No   segment.SegmentNo
	Live int64 // blocks
	// Gap is how much is written to the disk between two overwrites of blocks of the segment.
	Gap int64
}

// choice collects the best candidates: those of the largest (1-u)^2 x gap, u being the part that lives. Of two that are as empty it
// takes the one of which less will die by itself.
type choice struct {
	capacity int64 // blocks in a segment
	maxUse   float64
	best     []scored // at most shortlist, the best first
}

type scored struct {
	Candidate
	score float64
}

func (c *choice) offer(x Candidate) {
	u := float64(max(0, x.Live)) / float64(c.capacity)
	if u > c.maxUse {
		return
	}
	s := scored{x, (1 - u) * (1 - u) * float64(x.Gap+1)}
	if n := len(c.best); n == shortlist {
		if compareScores(c.best[n-1], s) <= 0 {
			return
		}
		c.best = c.best[:n-1]
	}
	i, _ := slices.BinarySearchFunc(c.best, s, compareScores)
	c.best = slices.Insert(c.best, i, s)
}

// compareScores puts the higher score first, then the older segment.
func compareScores(a, b scored) int {
	return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.No, b.No))
}
