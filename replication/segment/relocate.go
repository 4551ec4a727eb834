package segment

import (
	"errors"

	storage "github.com/storaged/storaged"
)

// A group that cannot commit, because the majority is away, has entries that no checkpoint covers, and recovery begins at the
// first of them: a few of them hold every later segment of the disk. So they are appended once more, at the end. Raft sees
// nothing of it: the log of the group holds the same entries, in other places.
//
// Whenever the power goes, recovery finds each entry:
//
//   - While the copies are not durable, the old places count. The group's position, from which it needs the log, does not move, and
//     what is read before a copy of it is the entry (applyEntry).
//   - Copies of which one was truncated meanwhile never count: the log may be needed from where the truncated ones were, and there
//     would be none before them.
//   - All copies get their positions at once (CopyUncovered), so that a scan that begins at the first of them meets them one
//     after another, and whatever the group appends or truncates later behind them.

// Copies are entries that were appended once more. They count when Adopt says so.
type Copies struct {
	g     *GroupLog
	first uint64     // index of the first entry
	from  []Position // where the entries were
	to    []copyAt   // where their copies are
	end   Position   // what must be durable for all copies to be
}

// copyAt is the place of a copy. Its padding is that of the place.
type copyAt struct {
	at      Position
	padding uint16
}

// UncoveredBytes returns how much of the log is taken by entries that no durable checkpoint covers.
func (g *GroupLog) UncoveredBytes() (n int64) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	return g.uncoveredLocked()
}

func (g *GroupLog) uncoveredLocked() (n int64) {
	for i := max(g.applied, g.base) + 1; i <= g.lastLocked(); i++ {
		n += g.entryLocked(i).size()
	}
	return n
}

// CopyUncovered appends copies of the entries that no durable checkpoint covers. It does nothing, and returns nil, if there are
// none, or more than limit bytes, if the log changes meanwhile, or if it has no room for them in memory now: it waits for reads, and
// for nothing else. Errors are those of Append and Get.
func (g *GroupLog) CopyUncovered(limit int64) (*Copies, error) {
	c := g.uncovered(limit)
	if c == nil {
		return nil, nil
	}
	entries := make([]Entry, len(c.from))
	for i := range entries {
		e, err := g.Get(c.first + uint64(i))
		if errors.Is(err, storage.ErrNotFound) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		e.Cold = true
		entries[i] = e
	}
	records, total, err := g.prepare(entries)
	if err != nil {
		return nil, err
	}
	l := g.l
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failure != nil || l.closing:
		return nil, l.refusalLocked()
	case !c.currentLocked() || l.tailBytes > 0 && l.tailBytes+total > l.cfg.MaxTailBytes:
		return nil, nil
	}
	if err := g.writableLocked("copy entries"); err != nil {
		return nil, err
	}
	now := l.now()
	for i := range records {
		l.pushLocked(&records[i], now)
		c.to = append(c.to, copyAt{records[i].header.position, records[i].header.padding})
	}
	c.end = l.endLocked()
	l.committed.Signal()
	return c, nil
}

// uncovered returns which entries are to be copied; nil for none.
func (g *GroupLog) uncovered(limit int64) *Copies {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if n := g.uncoveredLocked(); n == 0 || n > limit {
		return nil
	}
	c := &Copies{g: g, first: max(g.applied, g.base) + 1}
	for i := c.first; i <= g.lastLocked(); i++ {
		c.from = append(c.from, g.entryLocked(i).at)
	}
	return c
}

// currentLocked reports whether the entries are still those that no checkpoint covers, and all of them.
func (c *Copies) currentLocked() bool {
	if c.first != max(c.g.applied, c.g.base)+1 || c.first+uint64(len(c.from)) != c.g.lastLocked()+1 {
		return false
	}
	for i, at := range c.from {
		if c.g.entryLocked(c.first+uint64(i)).at != at {
			return false
		}
	}
	return true
}

// Adopt makes the copies the places of their entries as soon as they are durable; until then it returns false. If one was truncated
// meanwhile, all stay where they are. From then on NextNeeded may lie behind the old places: whoever has asked
// for one of them (Location) must have seen to it that its segment counts as in use.
func (c *Copies) Adopt() bool {
	l := c.g.l
	l.mu.Lock()
	defer l.mu.Unlock()
	// Guards I7: a position that recovery begins at must be durable, and so must all that it leads to.
	if l.Durable() < c.end {
		return false
	}
	for i := range c.to {
		if e := c.entryLocked(i); e == nil && c.first+uint64(i) > c.g.base || e != nil && e.at != c.from[i] {
			return true
		}
	}
	for i, to := range c.to {
		if e := c.entryLocked(i); e != nil {
			e.at, e.padding = to.at, to.padding
		}
	}
	return true
}

// entryLocked is the entry that copy i is of; nil if it was dropped or truncated.
func (c *Copies) entryLocked(i int) *entry { return c.g.entryLocked(c.first + uint64(i)) }
