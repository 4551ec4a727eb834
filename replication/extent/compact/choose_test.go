package compact

import (
	"slices"
	"testing"

	"github.com/storaged/storaged/replication/segment"
)

// TestChoose: the emptiest segments come first, colder ones before those whose blocks die by themselves, none that is too full, and
// no more than the shortlist.
func TestChoose(t *testing.T) {
	for _, test := range []struct {
		name   string
		maxUse float64
		offers []Candidate
		want   []segment.SegmentNo
	}{
		{"the emptiest", MaxUse, []Candidate{{1, 90, 0}, {2, 10, 0}, {3, 50, 0}}, []segment.SegmentNo{2, 3, 1}},
		{"nothing lives, but it is referred to", MaxUse, []Candidate{{1, 1, 0}, {2, 0, 0}}, []segment.SegmentNo{2, 1}},
		{"too full", MaxUse, []Candidate{{1, 99, 900}, {2, 120, 900}, {3, 98, 0}}, []segment.SegmentNo{3}},
		{"too full for idle time", idleUse, []Candidate{{1, 76, 900}, {2, 75, 0}}, []segment.SegmentNo{2}},
		{"cold before hot", MaxUse, []Candidate{{1, 50, 10}, {2, 60, 100}}, []segment.SegmentNo{2, 1}},
		{"hot, but nearly empty", MaxUse, []Candidate{{1, 2, 100}, {2, 90, 100}}, []segment.SegmentNo{1, 2}},
		{"the older of two alike", MaxUse, []Candidate{{9, 50, 7}, {3, 50, 7}}, []segment.SegmentNo{3, 9}},
	} {
		c := choice{capacity: 100, maxUse: test.maxUse}
		for _, x := range test.offers {
			c.offer(x)
		}
		var got []segment.SegmentNo
		for _, s := range c.best {
			got = append(got, s.No)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	c := choice{capacity: 1000, maxUse: MaxUse}
	for i := range 200 {
		c.offer(Candidate{segment.SegmentNo(i + 1), int64(i * 37 % 200), 0})
	}
	if len(c.best) != shortlist || c.best[0].Live != 0 || c.best[shortlist-1].Live != shortlist-1 {
		t.Errorf("of 200 the best are %v", c.best)
	}
}

// TestCopiesMakeNoVictims: a segment that is full of the largest records of copies is none, whatever its size, though what is left at its
// end is too little for another.
// Guards, in choose.go: RecordBlocks' bound by what a segment may lack; at 64 blocks for all segments this failed.
func TestCopiesMakeNoVictims(t *testing.T) {
	for segment := int64(16 << 10); segment <= 64<<20; segment += segment/64 + 4<<10 {
		n := int64(RecordBlocks(segment))
		record := n*(4<<10) + copyBytes - 4<<10
		blocks := (segment - segmentMargin) / record * n
		if use := float64(blocks) / float64(Capacity(segment)); n < 1 || use <= MaxUse {
			t.Errorf("a segment of %d bytes that is full of records of %d blocks is used to %.1f %%", segment, n, 100*use)
		}
	}
	if n := RecordBlocks(64 << 20); n != maxRecordBlocks {
		t.Errorf("in segments of 64 MiB records have %d blocks", n)
	}
}

// TestCapacity: copies of single blocks fit, and a segment that is full of them is no victim.
func TestCapacity(t *testing.T) {
	for _, bytes := range []int64{16 << 10, 64 << 10, 1 << 20, 64 << 20, 1 << 30} {
		n := Capacity(bytes)
		if n < 1 || n*copyBytes+segmentMargin > bytes || (n+1)*copyBytes+segmentMargin <= bytes {
			t.Errorf("%d bytes: %d blocks", bytes, n)
		}
		if PackedBytes(0, bytes) != 0 || PackedBytes(1, bytes) != bytes || PackedBytes(n, bytes) != bytes || PackedBytes(n+1, bytes) != 2*bytes {
			t.Errorf("%d bytes: packed %d, %d", bytes, PackedBytes(n, bytes), PackedBytes(n+1, bytes))
		}
		if float64(n) <= MaxUse*float64(n) {
			t.Errorf("%d bytes: a full segment is a victim", bytes)
		}
	}
}
