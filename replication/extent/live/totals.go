package live

import (
	"sync"

	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

// gapWindow is over how many overwrites of its blocks a segment's gap is averaged.
const gapWindow = 256

// Segment is what all table sets together say at present of one segment.
type Segment struct {
	table.Count
	// Gap is how many blocks are written to the disk from one overwrite of a block of the segment to the next: a moving average,
	// or the time since the last one if that is longer. It is 0 after a start.
	Gap int64

	last int64 // clock of the last overwrite, or of the first block
}

// totals is the sum over all sets, of the present state. Its lock is a leaf below those of sets.
type totals struct {
	mu       sync.Mutex // guards all below
	segments map[segment.SegmentNo]Segment
	own      int64
	clock    int64 // blocks that were written
}

// add adds what a set's counts changed by. written says that clients did it, not a move of blocks or of sets.
func (t *totals) add(d table.Counts, sign int64, written bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.segments == nil {
		t.segments = map[segment.SegmentNo]Segment{}
	}
	if written {
		for _, n := range d {
			t.clock += max(0, n.Own)
		}
	}
	for no, n := range d {
		s, known := t.segments[no]
		if !known {
			s.last = t.clock
		}
		s.Refs += sign * n.Refs
		s.Own += sign * n.Own
		t.own += sign * n.Own
		if written && n.Own < 0 {
			s.overwritten(-n.Own, t.clock)
		}
		if s.Count == (table.Count{}) {
			delete(t.segments, no)
		} else {
			t.segments[no] = s
		}
	}
}

// overwritten notes that n blocks of the segment were overwritten or cleared.
func (s *Segment) overwritten(n, clock int64) {
	gap := (clock - s.last) / n
	s.Gap += (gap - s.Gap) * min(n, gapWindow) / gapWindow
	s.last = clock
}

// Segments calls fn with every segment that a table refers to, in any order, and returns how many blocks live in all.
// fn must not call back.
func (x *Index) Segments(fn func(no segment.SegmentNo, s Segment)) (blocks int64) {
	x.totals.mu.Lock()
	defer x.totals.mu.Unlock()
	for no, s := range x.totals.segments {
		s.Gap = max(s.Gap, x.totals.clock-s.last)
		fn(no, s)
	}
	return x.totals.own
}

// Blocks returns how many blocks live, and how many were written since the start.
func (x *Index) Blocks() (live, written int64) {
	x.totals.mu.Lock()
	defer x.totals.mu.Unlock()
	return x.totals.own, x.totals.clock
}

// References returns how many entries refer to the segment at present.
func (x *Index) References(no segment.SegmentNo) int64 {
	x.totals.mu.Lock()
	defer x.totals.mu.Unlock()
	return x.totals.segments[no].Refs
}

// Live returns how many blocks of the segment live at present.
func (x *Index) Live(no segment.SegmentNo) int64 {
	x.totals.mu.Lock()
	defer x.totals.mu.Unlock()
	return x.totals.segments[no].Own
}

// ReferredBy returns the sets that refer to the segment at present, in any order.
func (x *Index) ReferredBy(no segment.SegmentNo) (ids []table.SetID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, set := range x.sets {
		if set.refersTo(no) {
			ids = append(ids, id)
		}
	}
	return ids
}
