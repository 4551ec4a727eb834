package bound

import "sync/atomic"

// Budget bounds what the groups of a store hold of something together. A group may always hold a part of its own; those
// that hold more make room once all together hold more than the limit. So one busy group may have nearly all of it while
// the others are idle, and all together hold no more than the limit and the parts. It is safe for concurrent use.
type Budget struct {
	limit, part, total atomic.Int64
}

// Set fixes the bounds.
func (b *Budget) Set(limit, part int64) {
	b.limit.Store(max(limit, 1))
	b.part.Store(max(part, 1))
}

// Add notes n more for the group that of belongs to.
func (b *Budget) Add(of *atomic.Int64, n int64) {
	of.Add(n)
	b.total.Add(n)
}

// Note makes n what the group holds.
func (b *Budget) Note(of *atomic.Int64, n int64) { b.total.Add(n - of.Swap(n)) }

// Drop forgets what the group holds, and returns it.
func (b *Budget) Drop(of *atomic.Int64) int64 {
	n := of.Swap(0)
	b.total.Add(-n)
	return n
}

// Over returns how much the group should give up; below zero if it may hold more.
func (b *Budget) Over(of *atomic.Int64) int64 {
	return min(of.Load()-b.part.Load(), b.total.Load()-b.limit.Load())
}

// Total returns what all groups hold.
func (b *Budget) Total() int64 { return b.total.Load() }
