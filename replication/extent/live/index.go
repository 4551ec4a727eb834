package live

import (
	"sync"

	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

// Index is the table sets of a disk. The zero Index has none.
type Index struct {
	mu   sync.Mutex // guards all below; taken before the locks of sets
	sets map[table.SetID]*Set
	// held: from these segments on there may be blocks that no set counts yet.
	held map[*segment.SegmentNo]struct{}

	totals totals
}

// Add adds a set.
func (x *Index) Add(id table.SetID, set *Set) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.sets == nil {
		x.sets = map[table.SetID]*Set{}
	}
	x.sets[id] = set
	set.join(&x.totals)
}

// Replace puts a set in the place of that with the same id. At every moment one of them counts.
func (x *Index) Replace(id table.SetID, set *Set) {
	x.mu.Lock()
	defer x.mu.Unlock()
	set.join(&x.totals)
	if old := x.sets[id]; old != nil {
		old.leave()
	}
	x.sets[id] = set
}

// Drop forgets a set that is gone, durably.
func (x *Index) Drop(id table.SetID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if set := x.sets[id]; set != nil {
		set.leave()
		delete(x.sets, id)
	}
}

// HoldFrom has every segment from no on count as in use until release is called.
func (x *Index) HoldFrom(no segment.SegmentNo) (release func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.held == nil {
		x.held = map[*segment.SegmentNo]struct{}{}
	}
	hold := &no
	x.held[hold] = struct{}{}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.held, hold)
	}
}

// InUse reports whether any set refers to the segment, or soon may.
func (x *Index) InUse(no segment.SegmentNo) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for from := range x.held {
		if no >= *from {
			return true
		}
	}
	for _, set := range x.sets {
		if set.InUse(no) {
			return true
		}
	}
	return false
}
