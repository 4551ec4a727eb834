package bound

import (
	"context"
	"sync"
	"sync/atomic"
)

// Limit bounds what the groups of a store hold of something together by letting those wait who would add to it. Adding itself never
// waits: there may be more than the limit. It is safe for concurrent use.
type Limit struct {
	limit, total atomic.Int64

	mu   sync.Mutex    // guards all below; a leaf
	less chan struct{} // closed when there is less than before; nil: nobody waits
}

// Add notes n more, of the group that of belongs to; less if n is negative.
func (l *Limit) Add(of *atomic.Int64, n int64) {
	of.Add(n)
	l.total.Add(n)
	if n < 0 {
		l.wake()
	}
}

// Drop forgets what a group holds.
func (l *Limit) Drop(of *atomic.Int64) {
	l.total.Add(-of.Swap(0))
	l.wake()
}

// SetLimit changes the bound.
func (l *Limit) SetLimit(n int64) {
	l.limit.Store(n)
	l.wake()
}

// Full reports that Await would wait.
func (l *Limit) Full() bool { return l.total.Load() >= l.limit.Load() }

func (l *Limit) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.less != nil {
		close(l.less)
		l.less = nil
	}
}

// Await returns when there is room for more, or with the error of ctx.
func (l *Limit) Await(ctx context.Context) error {
	for l.Full() {
		l.mu.Lock()
		if l.less == nil {
			l.less = make(chan struct{})
		}
		less := l.less
		l.mu.Unlock()
		if !l.Full() { // since we looked, and before we could be woken
			return nil
		}
		select {
		case <-less:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Total returns how much all groups hold.
func (l *Limit) Total() int64 { return l.total.Load() }
