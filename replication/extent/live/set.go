package live

import (
	"maps"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

// Set counts the table entries of one table set that refer to each segment, and the blocks that live in it, as of the durable
// checkpoint, of the checkpoint being written, and of now. Its lock is a leaf: nothing else is locked under it.
type Set struct {
	mu      sync.Mutex
	durable table.Counts // what Pebble holds
	frozen  table.Counts // change from there to the frozen state, if there is one
	pending table.Counts // change from there to now
	blocks  int64        // that live at present: the sum of Own
	totals  *totals      // of the Index that the set is in; nil: none
}

// NewSet returns the counts of a set of which the database holds durable.
func NewSet(durable table.Counts) *Set {
	return &Set{durable: durable, frozen: table.Counts{}, pending: table.Counts{}, blocks: own(durable)}
}

// own returns how many more blocks live by a change.
func own(d table.Counts) (n int64) {
	for _, c := range d {
		n += c.Own
	}
	return n
}

// Bytes returns how many bytes of blocks live at present. What versions share counts once. It costs nothing.
func (l *Set) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocks * storage.BlockSize
}

// Change notes what applying entries changed.
func (l *Set) Change(d table.Counts) { l.change(d, true) }

// Move notes what a change of places changed.
func (l *Set) Move(d table.Counts) { l.change(d, false) }

func (l *Set) change(d table.Counts, written bool) {
	if len(d) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.Add(d)
	l.blocks += own(d)
	if l.totals != nil {
		l.totals.add(d, 1, written)
	}
}

// join makes the set count in totals.
func (l *Set) join(t *totals) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.totals = t
	t.add(l.nowLocked(), 1, false)
}

// leave is the opposite of join.
func (l *Set) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.totals.add(l.nowLocked(), -1, false)
	l.totals = nil
}

// Freeze makes now the frozen state. There must be none.
func (l *Set) Freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frozen, l.pending = l.pending, table.Counts{}
}

// Thaw gives the frozen state up without its having become durable.
func (l *Set) Thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.Add(l.frozen)
	l.frozen = table.Counts{}
}

// Next returns the counts that differ in the frozen state from the durable ones; 0 where nothing is left.
func (l *Set) Next() table.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := make(table.Counts, len(l.frozen))
	for no, d := range l.frozen {
		n[no] = l.durable[no].Plus(d)
	}
	return n
}

// Persisted makes the frozen state the durable one.
func (l *Set) Persisted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable.Add(l.frozen)
	l.frozen = table.Counts{}
}

// After returns what the durable counts become by the change d, for the segments in d.
func (l *Set) After(d table.Counts) table.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := make(table.Counts, len(d))
	for no, v := range d {
		n[no] = l.durable[no].Plus(v)
	}
	return n
}

// ChangeDurable notes a change that was written to Pebble beside the checkpoints.
func (l *Set) ChangeDurable(d table.Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable.Add(d)
	l.blocks += own(d)
	if l.totals != nil {
		l.totals.add(d, 1, false)
	}
}

// Stored notes that the database holds d of what has changed up to now. Nothing changes by it in what is in use.
func (l *Set) Stored(d table.Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable.Add(d)
	for no, n := range d {
		l.pending.Bump(no, table.Count{Refs: -n.Refs, Own: -n.Own})
	}
}

// refersTo reports whether the present state refers to the segment.
func (l *Set) refersTo(no segment.SegmentNo) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable[no].Refs+l.frozen[no].Refs+l.pending[no].Refs != 0
}

// InUse reports whether the durable, the frozen or the present state refers to the segment.
func (l *Set) InUse(no segment.SegmentNo) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	durable := l.durable[no].Refs
	frozen := durable + l.frozen[no].Refs
	return durable != 0 || frozen != 0 || frozen+l.pending[no].Refs != 0
}

// Durable returns the counts that the database holds.
func (l *Set) Durable() table.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.durable)
}

// Now returns the present counts.
func (l *Set) Now() table.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nowLocked()
}

func (l *Set) nowLocked() table.Counts {
	n := maps.Clone(l.durable)
	n.Add(l.frozen)
	n.Add(l.pending)
	return n
}

// DurableSegments returns the segments that the durable checkpoint refers to.
func (l *Set) DurableSegments() []segment.SegmentNo {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]segment.SegmentNo, 0, len(l.durable))
	for no := range l.durable {
		out = append(out, no)
	}
	return out
}

// DurableBytes returns how many bytes of blocks the durable checkpoint refers to. What versions share counts once.
func (l *Set) DurableBytes() (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.durable {
		n += uint64(c.Own) * storage.BlockSize
	}
	return n
}
