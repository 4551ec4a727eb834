package attach

import "sync"

// fuseBudget bounds the bytes of FUSE requests that all devices of a driver work on. A device has as much as is left to the
// others besides: one that is busy alone half of it, two of them a third each. Each may always work on one request, however much
// the others hold; the limit is exceeded by no more than that. Its methods may be called concurrently.
type fuseBudget struct {
	limit int64

	mu    sync.Mutex
	freed sync.Cond // on mu; broadcast when something is given back, or a device stops
	used  int64     // guarded by mu
}

func newFUSEBudget(limit int64) *fuseBudget {
	b := &fuseBudget{limit: limit}
	b.freed.L = &b.mu
	return b
}

// fuseShare is what one device holds of a budget.
type fuseShare struct {
	budget *fuseBudget
	held   int64 // guarded by budget.mu, as ended
	ended  bool
}

// take waits until n more bytes may be held. It does not wait once the device stops: what was read is answered.
func (s *fuseShare) take(n int64) {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	for s.held > 0 && s.held+n > b.limit-b.used && !s.ended {
		b.freed.Wait()
	}
	s.held += n
	b.used += n
}

// give gives back what take took.
func (s *fuseShare) give(n int64) {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	s.held -= n
	b.used -= n
	b.freed.Broadcast()
}

// stop ends the waiting of take, for good.
func (s *fuseShare) stop() {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	s.ended = true
	b.freed.Broadcast()
}
