package diskio

import (
	"sync"
	"time"
)

// outstanding knows the reads that wait for the disk, so that one that hangs is noticed though nobody writes.
type outstanding struct {
	mu          sync.Mutex // guards all below; a leaf
	first, last *waiting   // in the order of their beginning
	answered    time.Time  // when the disk last answered one
}

// waiting is one read that waits.
type waiting struct {
	since        time.Time
	before, next *waiting
}

func (o *outstanding) begin() *waiting {
	w := &waiting{since: time.Now()}
	o.mu.Lock()
	defer o.mu.Unlock()
	if w.before = o.last; o.last == nil {
		o.first = w
	} else {
		o.last.next = w
	}
	o.last = w
	return w
}

func (o *outstanding) end(w *waiting) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answered = time.Now()
	if w.before == nil {
		o.first = w.next
	} else {
		w.before.next = w.next
	}
	if w.next == nil {
		o.last = w.before
	} else {
		w.next.before = w.before
	}
}

// stalled returns since when reads wait and the disk has answered none; ok is false if none waits. A disk with more to read
// than it can is slow, and not hung: it answers one after another.
func (o *outstanding) stalled() (since time.Time, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first == nil {
		return time.Time{}, false
	}
	if since = o.first.since; since.Before(o.answered) {
		since = o.answered
	}
	return since, true
}
