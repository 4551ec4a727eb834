// Package copies says how much data fits on nodes when everything has several copies, each on another node: arithmetic, shared by
// what plans and by what shows.
package copies

import "slices"

// mostBytes is what a node counts for at most, 1 PiB, so that sums over all nodes do not overflow.
const mostBytes = 1 << 50

// Fit returns how many bytes of data fit on nodes with that much room each: the largest u with sum(min(room, u)) >= copies*u. With fewer
// nodes than copies there are as many copies as nodes.
func Fit(room []int64, copies int) int64 {
	room = slices.Clone(room)
	for i, r := range room {
		room[i] = min(max(r, 0), mostBytes)
	}
	copies = min(max(copies, 1), len(room))
	if copies == 0 {
		return 0
	}
	slices.Sort(room)
	slices.Reverse(room)
	// A node with more than u is as good as one with u: the k largest count as u each, the rest as what they have. The
	// copies-1 largest at most are cut off; the first k for which the bound holds is the answer.
	var rest int64
	for _, r := range room {
		rest += r
	}
	for k := range copies {
		u := rest / int64(copies-k)
		if room[k] <= u {
			return u
		}
		rest -= room[k]
	}
	return 0 // not reached: with k = copies-1, u = rest >= room[k]
}
