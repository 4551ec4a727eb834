package extent

import (
	"sync"
	"sync/atomic"
)

// unsavedShares is how many times the cache the pages that Pebble does not hold may take before Apply waits. Checkpoints
// are due at two.
const unsavedShares = 4

// unsavedPages bounds the memory for pages that are not in Pebble yet. Such pages cannot be evicted, and when checkpoints
// are slow, or stand still, while the log goes on, there is no end to them. So Apply waits, over the limit, while a
// checkpoint is being written. While none is, it does not: the state machine that would wait is the one that has to
// begin the next.
type unsavedPages struct {
	limit, pages atomic.Int64

	mu      sync.Mutex    // guards all below; a leaf
	writing int           // checkpoints between Freeze and Release
	ended   chan struct{} // closed, and made anew when needed, when one of them ends; nil: nobody waits
}

// add notes n pages more, of the group that of belongs to.
func (u *unsavedPages) add(of *atomic.Int64, n int64) {
	of.Add(n)
	u.pages.Add(n)
}

// drop forgets the pages of a group.
func (u *unsavedPages) drop(of *atomic.Int64) { u.pages.Add(-of.Swap(0)) }

func (u *unsavedPages) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.writing++
}

func (u *unsavedPages) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.writing--
	if u.ended != nil {
		close(u.ended)
		u.ended = nil
	}
}

// awaitRoom returns when there is room for more pages, or no checkpoint is being written. Guards I9.
func (u *unsavedPages) awaitRoom() {
	for u.pages.Load() >= u.limit.Load() {
		u.mu.Lock()
		if u.writing == 0 {
			u.mu.Unlock()
			return
		}
		if u.ended == nil {
			u.ended = make(chan struct{})
		}
		ended := u.ended
		u.mu.Unlock()
		<-ended
	}
}
