package table

import "github.com/storaged/storaged/replication/segment"

// Counts is a number of table entries per segment.
type Counts map[segment.SegmentNo]int64

// Add adds d and forgets counts that reach zero.
func (c Counts) Add(d Counts) {
	for no, n := range d {
		c.Bump(no, n)
	}
}

// Bump adds n to the count of a segment.
func (c Counts) Bump(no segment.SegmentNo, n int64) {
	if v := c[no] + n; v == 0 {
		delete(c, no)
	} else {
		c[no] = v
	}
}

// Count adds n for every block that the page maps.
func (c Counts) Count(p *Page, n int64) {
	for i := range p.Entries {
		if e := &p.Entries[i]; e.Mapped() {
			c.Bump(e.Segment, n)
		}
	}
}
