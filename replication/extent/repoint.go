package extent

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/sched"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/segment"
)

// maxRepoint bounds the blocks that are re-pointed under one hold of the group's lock: applying waits for it.
const maxRepoint = 256

// Move is a block with a copy at another place.
type Move struct {
	Page table.PageKey
	At   int              // which entry of the page
	From table.Entry      // where the block lies
	To   segment.Position // where the copy lies; durable
}

// Repoint makes blocks lie at their copies, in every version of their pages that still has them at the old place, and returns
// how many stored entries it changed. It changes the tables in memory, as applying does, and the next checkpoint writes them. A
// block that was overwritten, cleared or moved meanwhile stays as it is, and so does everything when the group's
// tables are another set by now.
//
// Until it returns, the segments of the copies must be held (live.Index.HoldFrom).
func (g *Group) Repoint(set table.SetID, moves []Move) (changed int, err error) {
	for part := range slices.Chunk(moves, maxRepoint) {
		n, err := g.repoint(set, part)
		changed += n
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (g *Group) repoint(set table.SetID, moves []Move) (changed int, err error) {
	byPage := map[table.PageKey][]Move{}
	for _, m := range moves {
		byPage[m.Page] = append(byPage[m.Page], m)
	}
	pages := slices.SortedFunc(maps.Keys(byPage), table.PageKey.Compare)
	for {
		g.mu.RLock()
		persists, current, unknown := g.cache.persists, g.hasTables(set), g.cache.unknown(pages)
		g.mu.RUnlock()
		if !current {
			return 0, nil
		}
		stored, err := g.loadAll(set, unknown)
		if err != nil {
			return 0, err
		}
		g.mu.Lock()
		// I1: what was loaded may be older than a checkpoint by now, and would come back by way of the cache.
		if g.cache.persists == persists && g.hasTables(set) && g.cache.knows(pages, stored) {
			changed, err = g.repointLocked(pages, byPage, stored)
			for range pages {
				g.cache.evict() // not before: of those that were not loaded, memory alone knows where the blocks lie
			}
			g.mu.Unlock()
			return changed, err
		}
		g.mu.Unlock()
	}
}

// hasTables reports whether the set is the group's, and may change. mu is held.
func (g *Group) hasTables(set table.SetID) bool {
	return g.set.id == set && !g.removed && g.damage == nil
}

// unknown returns the pages of which Pebble may hold versions that memory does not.
func (c *cache) unknown(pages []table.PageKey) (unknown []table.PageKey) {
	for _, k := range pages {
		if cp := c.pages[k]; cp == nil || !cp.alone.Load() {
			unknown = append(unknown, k)
		}
	}
	return unknown
}

// knows reports whether memory and stored together have all versions of the pages.
func (c *cache) knows(pages []table.PageKey, stored map[table.PageKey][]*page) bool {
	return !slices.ContainsFunc(c.unknown(pages), func(k table.PageKey) bool {
		_, loaded := stored[k]
		return !loaded
	})
}

// loadAll reads all versions of pages from Pebble, as they are stored, each page's in ascending order of epoch. The pages must be in
// ascending order.
func (g *Group) loadAll(set table.SetID, pages []table.PageKey) (versions map[table.PageKey][]*page, err error) {
	ranges := make([]tabledb.Range, 0, len(pages))
	versions = make(map[table.PageKey][]*page, len(pages))
	for _, k := range pages {
		versions[k] = nil
		ranges = append(ranges, tabledb.Range{From: table.AppendPageKey(nil, set, k, storage.Epoch(math.MaxUint64)),
			To: append(table.AppendPageKey(nil, set, k, 0), 0)})
	}
	err = g.store.db.ScanRanges(ranges, func(i int, key, value []byte) error {
		sched.Yield()
		p := new(page)
		versions[pages[i]] = append(versions[pages[i]], p)
		return p.Decode(key, value)
	})
	for _, vs := range versions {
		slices.Reverse(vs)
	}
	g.store.loaded()
	return versions, err
}

// repointLocked changes pages in memory. stored are their versions in Pebble.
func (g *Group) repointLocked(pages []table.PageKey, moves map[table.PageKey][]Move, stored map[table.PageKey][]*page) (changed int, err error) {
	delta := table.Counts{}
	for _, k := range pages {
		// I1: of a deleted volume nothing is changed, so that a purge finds in Pebble all that was counted.
		if v := g.state.Volume(k.Volume); v == nil || v.Deleted() {
			continue
		}
		all, err := g.cache.versions(k, stored[k])
		if err != nil {
			return changed, g.repointed(changed, delta, err)
		}
		for _, p := range all {
			changed += g.cache.repoint(k, p, all[len(all)-1], moves[k], delta)
		}
	}
	return changed, g.repointed(changed, delta, nil)
}

// repointed counts what was changed. I1: mu is held since, because a freeze takes pages and counts of one moment.
func (g *Group) repointed(changed int, delta table.Counts, err error) error {
	if changed > 0 {
		g.cache.persists++ // who loads a page meanwhile loads it again
		if g.movedAt.IsZero() {
			g.movedAt = time.Now()
		}
		g.set.live.Move(delta)
		g.store.written.Add(&g.sinceFreeze, int64(changed)*storage.BlockSize)
	}
	return err
}

// versions returns all versions of a page, whole, in ascending order of epoch: those in memory, and of those that Pebble holds the
// others. These inherit what memory says of the older ones, which may have been moved since they were stored.
func (c *cache) versions(k table.PageKey, stored []*page) (all []*page, err error) {
	if cp := c.pages[k]; cp != nil {
		all = slices.Clone(cp.older)
		if cp.head != nil {
			all = append(all, cp.head)
		}
	}
	memory := slices.Clone(all)
	for _, p := range stored {
		if _, ok := findVersion(memory, p.Epoch); !ok {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b *page) int { return cmp.Compare(a.Epoch, b.Epoch) })
	before := &page{}
	for _, p := range all {
		if p.Missing != 0 { // else it may be frozen, and read without the lock
			if err := p.Inherit(&before.Page); err != nil {
				return nil, err
			}
		}
		before = p
	}
	return all, nil
}

// asOf returns the newest version of a page with an epoch not above e, whole; nil if there is none. stored are the versions that
// Pebble holds.
func (c *cache) asOf(k table.PageKey, stored []*page, e storage.Epoch) (p *page, err error) {
	all, err := c.versions(k, stored)
	for _, q := range all {
		if q.Epoch <= e {
			p = q
		}
	}
	return p, err
}

// findVersion returns where the version of an epoch is among pages in ascending order, or would be.
func findVersion(pages []*page, e storage.Epoch) (i int, ok bool) {
	return slices.BinarySearchFunc(pages, e, func(p *page, e storage.Epoch) int { return cmp.Compare(p.Epoch, e) })
}

// repoint changes those entries of one version of a page that lie where the moves say, and returns how many of them are stored
// with it. newest is the page's newest version.
func (c *cache) repoint(k table.PageKey, p, newest *page, moves []Move, delta table.Counts) (changed int) {
	stored, lies, stores := p.Stored(), false, false
	for _, m := range moves {
		if p.Entries[m.At] == m.From {
			lies, stores = true, stores || stored&(1<<m.At) != 0
		}
	}
	switch {
	case !lies:
		return 0
	case stores, p.dirtySince != 0:
		p = c.rewritable(k, p, newest)
	case !c.holds(k, p):
		return 0 // it inherits the place when it is loaded
	}
	for _, m := range moves {
		e := &p.Entries[m.At]
		if *e != m.From {
			continue
		}
		// I1: what is only inherited changes as well. It is in memory, the next version is made from it, and that one may store it.
		e.Segment, e.Offset = m.To.Segment(), m.To.Offset()
		if stored&(1<<m.At) == 0 {
			continue
		}
		n := table.Count{Refs: 1}
		if p.Own&(1<<m.At) != 0 {
			n.Own = 1
		}
		delta.Bump(m.From.Segment, table.Count{Refs: -n.Refs, Own: -n.Own})
		delta.Bump(e.Segment, n)
		changed++
	}
	return changed
}

// holds reports whether memory holds this version of a page.
func (c *cache) holds(k table.PageKey, p *page) bool {
	cp := c.pages[k]
	return cp != nil && (cp.head == p || slices.Contains(cp.older, p))
}

// rewritable returns a version of a page to change it under its own epoch: itself, or a copy if it is frozen. newest is the page's
// newest version.
func (c *cache) rewritable(k table.PageKey, p, newest *page) *page {
	cp := c.pages[k]
	if cp == nil {
		cp = c.add(k, newest)
	}
	switch {
	case p.dirtySince == c.freezes:
		return p
	case p.dirtySince != 0: // frozen
		q := p.clone()
		if cp.head == p {
			cp.head = q
		} else {
			cp.older[slices.Index(cp.older, p)] = q
		}
		p = q
	case p != cp.head: // loaded
		i, _ := findVersion(cp.older, p.Epoch)
		cp.older = slices.Insert(cp.older, i, p)
	}
	c.markDirty(k, cp, p)
	return p
}
