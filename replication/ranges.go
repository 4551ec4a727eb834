package replication

import (
	"context"
	"sync"

	storage "github.com/storaged/storaged"
)

// ranges serialises the mutations of overlapping block ranges on the leader, from before a range is read or proposed
// until it is applied. Without it, a partial block could be merged with what a concurrent write is about to replace.
//
// Waiters are served in the order of their arrival, so nobody starves and nothing can deadlock.
type ranges struct {
	mu      sync.Mutex
	extents map[extentKey][]*rangeHold // in order of arrival; guarded by mu
}

type extentKey struct {
	volume storage.VolumeID
	extent storage.ExtentIndex
}

// rangeHold is one mutation: the blocks [first, end) of an extent.
type rangeHold struct {
	key        extentKey
	first, end int
	released   chan struct{} // made by the first waiter, closed by release; guarded by ranges.mu
	spare      [1]*rangeHold
}

func newRanges() *ranges { return &ranges{extents: map[extentKey][]*rangeHold{}} }

// acquire waits until no earlier mutation overlaps the n blocks from first. It fails only when ctx is done.
func (r *ranges) acquire(ctx context.Context, volume storage.VolumeID, extent storage.ExtentIndex, first, n int) (*rangeHold, error) {
	h := &rangeHold{key: extentKey{volume, extent}, first: first, end: first + n}
	r.mu.Lock()
	holds := r.extents[h.key]
	var wait []chan struct{}
	for _, o := range holds {
		if o.first < h.end && h.first < o.end {
			if o.released == nil {
				o.released = make(chan struct{})
			}
			wait = append(wait, o.released)
		}
	}
	if holds == nil {
		holds = h.spare[:0]
	}
	r.extents[h.key] = append(holds, h)
	r.mu.Unlock()
	for _, released := range wait {
		select {
		case <-released:
		case <-ctx.Done():
			r.release(h)
			return nil, ctx.Err()
		}
	}
	return h, nil
}

// release ends a mutation.
func (r *ranges) release(h *rangeHold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	holds := r.extents[h.key]
	for i, o := range holds {
		if o == h {
			holds = append(holds[:i:i], holds[i+1:]...)
			break
		}
	}
	if len(holds) == 0 {
		delete(r.extents, h.key)
	} else {
		r.extents[h.key] = holds
	}
	if h.released != nil {
		close(h.released)
	}
}
