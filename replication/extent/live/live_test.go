package live

import (
	"maps"
	"testing"

	"github.com/storaged/storaged/replication/extent/table"
)

// blocks counts n blocks that are each referred to once.
func blocks(n int64) table.Count { return table.Count{Refs: n, Own: n} }

// TestSegmentsInUse follows a segment through what a set says of it: guards I1, a segment is in use as long as the durable
// state, the one being written, or the present one refers to it.
func TestSegmentsInUse(t *testing.T) {
	var x Index
	set := NewSet(table.Counts{1: blocks(2)})
	x.Add(7, set)
	want := func(when string, one, two bool) {
		t.Helper()
		if x.InUse(1) != one || x.InUse(2) != two {
			t.Errorf("%s: segment 1 in use %v, want %v; segment 2 %v, want %v", when, x.InUse(1), one, x.InUse(2), two)
		}
	}
	want("stored", true, false)
	set.Change(table.Counts{1: blocks(-2), 2: blocks(2)})
	want("moved from 1 to 2 in memory", true, true)
	set.Freeze()
	set.Change(table.Counts{2: blocks(-2)})
	want("and unmapped while that is written", true, true)
	if next := set.Next(); !maps.Equal(next, table.Counts{1: {}, 2: blocks(2)}) {
		t.Errorf("to be stored: %v", next)
	}
	set.Persisted()
	want("the move is durable", false, true)
	set.Freeze()
	set.Thaw()
	want("the next checkpoint came to nothing", false, true)
	set.Freeze()
	set.Persisted()
	want("all is durable", false, false)
	set.Change(table.Counts{1: {Refs: 1}})
	want("one more reference to a block of an older version", true, false)
	set.Change(table.Counts{1: {Refs: -1}})
	release, other := x.HoldFrom(2), x.HoldFrom(2)
	want("held from 2 on, twice", false, true)
	release()
	want("still held by the other", false, true)
	other()
	set.Change(table.Counts{1: blocks(1)})
	x.Drop(7)
	want("the set is gone", false, false)
}
