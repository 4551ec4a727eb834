package table

import (
	"math/bits"

	"github.com/storaged/storaged/replication/segment"
)

// Count is how many table entries refer to a segment: 0 <= Own <= Refs.
type Count struct {
	// Refs counts every entry that is stored. While there are any the segment is in use: a reference that somebody has not found
	// costs space and no data.
	Refs int64
	// Own counts each block once, at the version that it was written at: so many blocks of the segment are live.
	Own int64
}

// Plus returns the sum.
func (n Count) Plus(m Count) Count { return Count{n.Refs + m.Refs, n.Own + m.Own} }

// Counts is a number of table entries per segment.
type Counts map[segment.SegmentNo]Count

// Add adds d and forgets counts that reach zero.
func (c Counts) Add(d Counts) {
	for no, n := range d {
		c.Bump(no, n)
	}
}

// Bump adds n to the count of a segment.
func (c Counts) Bump(no segment.SegmentNo, n Count) {
	if v := c[no].Plus(n); v == (Count{}) {
		delete(c, no)
	} else {
		c[no] = v
	}
}

// Count adds n times what the page stores.
func (c Counts) Count(p *Page, n int64) {
	for m := p.Stored(); m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		one := Count{Refs: n}
		if p.Own&(1<<i) != 0 {
			one.Own = n
		}
		c.Bump(p.Entries[i].Segment, one)
	}
}
