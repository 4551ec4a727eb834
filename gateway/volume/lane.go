package volume

import (
	"context"
	"slices"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// lane hands out the sequence numbers of one session in one group.
//
// A number is free (never handed out, or given back), or taken, or answered. Those answered are marked in the window;
// a number is handed out only while it is InWindow, so that s is not sent before s-SessionWindow and everything
// below was answered.
type lane struct {
	group storage.GroupID
	limit int // taken <= limit

	mu       sync.Mutex
	next     uint64        // smallest number never handed out
	returned []uint64      // numbers below next that are free again
	taken    int           // numbers handed out and neither answered nor given back
	answered op.Window     // numbers whose requests were applied
	waiters  []*laneWaiter // in the order of their coming; empty unless nothing can be handed out
}

type laneWaiter struct {
	granted chan uint64 // of capacity 1; written once, under the lane's lock, when the waiter leaves the queue
}

func newLane(group storage.GroupID, limit int) *lane {
	return &lane{group: group, limit: limit, next: 1}
}

// take returns a number, waiting for one until ctx or over has ended (0, false).
func (l *lane) take(ctx context.Context, over <-chan struct{}) (uint64, bool) {
	l.mu.Lock()
	if len(l.waiters) == 0 {
		if seq, ok := l.takeLocked(); ok {
			l.mu.Unlock()
			return seq, true
		}
	}
	w := &laneWaiter{granted: make(chan uint64, 1)}
	l.waiters = append(l.waiters, w)
	l.mu.Unlock()

	select {
	case seq := <-w.granted:
		return seq, true
	case <-ctx.Done():
	case <-over:
	}
	l.mu.Lock()
	i := slices.Index(l.waiters, w)
	if i >= 0 {
		l.waiters = slices.Delete(l.waiters, i, i+1)
	}
	l.mu.Unlock()
	if i < 0 { // granted meanwhile; nothing was sent under it
		l.giveBack(<-w.granted)
	}
	return 0, false
}

func (l *lane) takeLocked() (uint64, bool) {
	if l.taken >= l.limit {
		return 0, false
	}
	if len(l.returned) > 0 {
		seq := slices.Min(l.returned)
		i := slices.Index(l.returned, seq)
		l.returned = slices.Delete(l.returned, i, i+1)
		l.taken++
		return seq, true
	}
	if !l.answered.InWindow(l.next) {
		return 0, false
	}
	seq := l.next
	l.next++
	l.taken++
	return seq, true
}

// finish notes that the request of number seq was applied.
func (l *lane) finish(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered.Mark(seq)
	l.taken--
	l.grantLocked()
}

// giveBack makes seq free again. Nothing that was sent under it may still be on its way.
func (l *lane) giveBack(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.returned = append(l.returned, seq)
	l.taken--
	l.grantLocked()
}

func (l *lane) grantLocked() {
	for len(l.waiters) > 0 {
		seq, ok := l.takeLocked()
		if !ok {
			return
		}
		l.waiters[0].granted <- seq
		l.waiters = slices.Delete(l.waiters, 0, 1)
	}
}
