package segment

import "github.com/storaged/storaged/internal/diskio"

// Nobody reads what a follower writes before it leads: clients read at the leader, and Raft and the state machine read from
// the log's own cache. In the page cache the same data would fill the memory of three nodes. It would also cost more time than
// the disk does: the kernel has to find a free page for each, and a virtual machine has to be given it first. Small entries
// share their pages with others, and stay.

// coldBytes is the size from which data that nobody reads soon is kept out of the page cache.
const coldBytes = 64 << 10

// markCold notes that a record is cold, but for the pages it may share with others: a page that has left the cache would
// have to be read before the next batch can write the rest of it.
func (c *committer) markCold(from, to int64) {
	const mask = pageBytes - 1
	from, to = (from+mask)&^mask, to&^mask
	if n := len(c.cold); n > 0 && c.cold[n-1].To+pageBytes >= from {
		c.cold[n-1].To = to
	} else if from < to {
		c.cold = append(c.cold, diskio.Span{From: from, To: to})
	}
}
