package extent

import "sync/atomic"

// used is the second chance of a cached page. Readers set it while they share the group's lock, so it is atomic; it
// is written only when it changes, so that readers do not take the cache line from each other.
type used struct{ b atomic.Bool }

func (u *used) set() {
	if !u.b.Load() {
		u.b.Store(true)
	}
}

// clear reports whether it was set.
func (u *used) clear() bool { return u.b.Swap(false) }
