package segment

import "github.com/storaged/storaged/internal/diskio"

// Nobody reads what a follower writes before it leads: clients read at the leader, and Raft and the state machine read from
// the log's own cache. In the page cache the same data would fill the memory of three nodes. It would also cost more time than
// the disk does: the kernel has to find a free page for each, and a virtual machine has to be given it first. Small entries
// share their pages with others, and stay.
//
// Large entries with blocks that lie well in memory go around the cache (direct I/O), which costs neither a copy nor a page. What a
// leader writes goes through the cache all the same: it is read there, and reads of what was just written would be the disk's.

// coldBytes is the size from which data that nobody reads soon is kept out of the page cache.
const coldBytes = 64 << 10

// markCold notes that a record is cold, but for the pages it may share with others: a page that has left the cache would
// have to be read before the next batch can write the rest of it.
func (c *committer) markCold(from, to int64) {
	const mask = pageBytes - 1
	from, to = (from+mask)&^mask, to&^mask
	if n := len(c.spans); n > 0 && !c.spans[n-1].Direct && c.spans[n-1].To+pageBytes >= from {
		c.spans[n-1].To = to
	} else if from < to {
		c.spans = append(c.spans, diskio.Span{From: from, To: to, Cold: true})
	}
}

// markDirect notes what of a record is written around the page cache: its blocks, and all of it if it begins at a page. Every page
// before them, which other records may be in as well, is written through the cache, and none in both ways.
func (c *committer) markDirect(r *record) {
	from, to := int64(r.blocksAt().Offset()), int64(r.end().Offset())
	if r.ownPages() {
		from = int64(r.header.position.Offset())
	}
	if n := len(c.spans); n > 0 && c.spans[n-1].To == from && c.spans[n-1].Direct && c.spans[n-1].Cold == r.cold {
		c.spans[n-1].To = to
	} else {
		c.spans = append(c.spans, diskio.Span{From: from, To: to, Direct: true, Cold: r.cold})
	}
}

// ownPages reports whether no other record is in the pages of this one, which is written directly.
func (r *record) ownPages() bool { return r.header.position.Offset()%pageBytes == 0 }
