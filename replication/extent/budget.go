package extent

import "sync/atomic"

// budget bounds what the groups of a store hold of something together. A group may always hold a part of its own; those
// that hold more make room once all together hold more than the limit. So one busy group may have nearly all of it while
// the others are idle, and all together hold no more than the limit and the parts. It is safe for concurrent use.
type budget struct {
	limit, part, total atomic.Int64
}

// set fixes the bounds.
func (b *budget) set(limit, part int64) {
	b.limit.Store(max(limit, 1))
	b.part.Store(max(part, 1))
}

// add notes n more for the group that of belongs to.
func (b *budget) add(of *atomic.Int64, n int64) {
	of.Add(n)
	b.total.Add(n)
}

// note makes n what the group holds.
func (b *budget) note(of *atomic.Int64, n int64) { b.total.Add(n - of.Swap(n)) }

// drop forgets what the group holds, and returns it.
func (b *budget) drop(of *atomic.Int64) int64 {
	n := of.Swap(0)
	b.total.Add(-n)
	return n
}

// over returns how much the group should give up; below zero if it may hold more.
func (b *budget) over(of *atomic.Int64) int64 {
	return min(of.Load()-b.part.Load(), b.total.Load()-b.limit.Load())
}
