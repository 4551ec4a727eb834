package extent

import (
	"encoding/binary"
	"maps"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// counts is a number of table entries per segment.
type counts map[segment.SegmentNo]int64

// add adds d and forgets counts that reach zero.
func (c counts) add(d counts) {
	for no, n := range d {
		c.bump(no, n)
	}
}

func (c counts) bump(no segment.SegmentNo, n int64) {
	if v := c[no] + n; v == 0 {
		delete(c, no)
	} else {
		c[no] = v
	}
}

// liveCounts counts the table entries of one table set that refer to each segment, as of the durable checkpoint, of
// the checkpoint being written, and of now. Its lock is a leaf: nothing else is locked under it.
type liveCounts struct {
	mu      sync.Mutex
	durable counts // what Pebble holds, >= 0
	frozen  counts // change from there to the frozen state, if there is one
	pending counts // change from there to now
}

func newLiveCounts(durable counts) *liveCounts {
	return &liveCounts{durable: durable, frozen: counts{}, pending: counts{}}
}

// change notes what applying entries changed.
func (l *liveCounts) change(d counts) {
	if len(d) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.add(d)
}

// freeze makes now the frozen state. There must be none.
func (l *liveCounts) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frozen, l.pending = l.pending, counts{}
}

// thaw gives the frozen state up without its having become durable.
func (l *liveCounts) thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.add(l.frozen)
	l.frozen = counts{}
}

// next returns the counts that differ in the frozen state from the durable ones; 0 where nothing is left.
func (l *liveCounts) next() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := make(counts, len(l.frozen))
	for no, d := range l.frozen {
		n[no] = l.durable[no] + d
	}
	return n
}

// persisted makes the frozen state the durable one.
func (l *liveCounts) persisted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable.add(l.frozen)
	l.frozen = counts{}
}

// after returns what the durable counts become by the change d, for the segments in d.
func (l *liveCounts) after(d counts) counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := make(counts, len(d))
	for no, v := range d {
		n[no] = l.durable[no] + v
	}
	return n
}

// changeDurable notes a change that was written to Pebble beside the checkpoints.
func (l *liveCounts) changeDurable(d counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable.add(d)
}

// inUse reports whether the durable, the frozen or the present state refers to the segment.
func (l *liveCounts) inUse(no segment.SegmentNo) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	durable := l.durable[no]
	frozen := durable + l.frozen[no]
	return durable != 0 || frozen != 0 || frozen+l.pending[no] != 0
}

// now returns the present counts.
func (l *liveCounts) now() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := maps.Clone(l.durable)
	n.add(l.frozen)
	n.add(l.pending)
	return n
}

// durableSegments returns the segments that the durable checkpoint refers to.
func (l *liveCounts) durableSegments() []segment.SegmentNo {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]segment.SegmentNo, 0, len(l.durable))
	for no := range l.durable {
		out = append(out, no)
	}
	return out
}

func liveValue(key []byte, n int64) []byte {
	return seal(key, binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

func decodeLive(key, value []byte) (set setID, no segment.SegmentNo, n int64, err error) {
	body, err := unseal(key, value)
	if err != nil || len(key) != 13 || len(body) != 8 {
		return 0, 0, 0, corrupt("decode live count", "key %x: %v", key, err)
	}
	n = int64(binary.LittleEndian.Uint64(body))
	if n <= 0 {
		return 0, 0, 0, corrupt("decode live count", "it is %d", n)
	}
	return setID(be.Uint64(key[1:])), segment.SegmentNo(be.Uint32(key[9:])), n, nil
}

// durableBytes returns how much the durable checkpoint refers to; blocks that versions share count once for each.
func (l *liveCounts) durableBytes() (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.durable {
		n += uint64(c) * storage.BlockSize
	}
	return n
}
