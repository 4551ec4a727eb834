package diskio

import (
	"sync"
	"time"
)

// outstanding knows the reads that wait for the disk, so that one that hangs is noticed though nobody writes.
type outstanding struct {
	mu       sync.Mutex // guards all below; a leaf
	reads    map[*waiting]struct{}
	answered time.Time // when the disk last answered one
}

// waiting is one read that waits.
type waiting struct{ since time.Time }

func (o *outstanding) begin() *waiting {
	w := &waiting{since: time.Now()}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.reads == nil {
		o.reads = map[*waiting]struct{}{}
	}
	o.reads[w] = struct{}{}
	return w
}

func (o *outstanding) end(w *waiting) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.reads, w)
	o.answered = time.Now()
}

// stalled returns since when reads wait and the disk has answered none; ok is false if none waits. A disk with more to read
// than it can is slow, and not hung: it answers one after another.
func (o *outstanding) stalled() (since time.Time, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for w := range o.reads {
		if !ok || w.since.Before(since) {
			since, ok = w.since, true
		}
	}
	if ok && since.Before(o.answered) {
		since = o.answered
	}
	return since, ok
}
