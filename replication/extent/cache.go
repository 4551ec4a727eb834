package extent

import (
	"maps"
	"slices"
	"sync/atomic"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
)

// cachedPage is what memory holds of one page in all its versions: the newest, and those older ones that no checkpoint
// holds yet. The group's lock guards it, but for used and alone.
type cachedPage struct {
	head  *page   // the newest version; nil: it is known that there is none
	older []*page // ascending epochs, all dirty or frozen; each below head's
	// pinned: a version is not in the last checkpoint, so that the page must stay.
	pinned bool
	// alone: Pebble holds no version of another epoch than head's. It is set while the lock is held for reading, too.
	alone atomic.Bool
	used  used
}

// noteStored says which versions of the page Pebble holds.
func (c *cachedPage) noteStored(stored []*page) {
	other := func(p *page) bool { return c.head == nil || p.Epoch != c.head.Epoch }
	if len(c.older) == 0 && !slices.ContainsFunc(stored, other) {
		c.alone.Store(true)
	}
}

// at returns the newest version in memory with an epoch not above e. sure is false if Pebble may hold a newer one.
func (c *cachedPage) at(e storage.Epoch) (p *page, sure bool) {
	if c.head == nil || e >= c.head.Epoch {
		return c.head, true
	}
	for i := len(c.older) - 1; i >= 0; i-- {
		if c.older[i].Epoch <= e {
			return c.older[i], c.older[i].Epoch == e
		}
	}
	return nil, false
}

// cache is the table pages of a group in memory: those that no checkpoint holds, and as many others as the groups of the store
// have room for. The group's lock guards it.
type cache struct {
	store  *Store // whose groups share the room
	pages  map[table.PageKey]*cachedPage
	pinned int // pages that are pinned
	// pinnedExtents counts them by extent; the sum is pinned.
	pinnedExtents map[table.ExtentID]int
	// freezes counts up from 1 at every freeze. Versions changed since have it as their dirtySince.
	freezes  uint64
	dirty    map[table.VersionKey]*page // changed since the last freeze
	persists uint64                     // counts what changes the tables in Pebble
	closed   bool                       // nothing is counted any more
	delta    table.Counts               // changes of live counts that were not handed on yet; of the goroutine that applies

	// Pages that are not pinned, and versions changed since the last freeze, by way of the store's budgets; versions that Pebble
	// does not hold, by way of store.unsaved.
	held, changed, unsaved atomic.Int64
}

// init makes the cache one of a group that has nothing in memory.
func (c *cache) init(s *Store) {
	c.store, c.freezes, c.delta = s, 1, table.Counts{}
	c.pages, c.pinnedExtents, c.dirty = map[table.PageKey]*cachedPage{}, map[table.ExtentID]int{}, map[table.VersionKey]*page{}
}

// reset drops everything: another table set took the place of the group's.
func (c *cache) reset() {
	c.pages, c.pinned, c.pinnedExtents = map[table.PageKey]*cachedPage{}, 0, map[table.ExtentID]int{}
	c.dirty = map[table.VersionKey]*page{}
	c.freezes++
	c.persists++
	clear(c.delta)
	c.dropShares()
}

// dropShares takes what the group holds out of what the groups of the store share.
func (c *cache) dropShares() {
	c.store.changed.Drop(&c.changed)
	c.store.cached.Drop(&c.held)
	c.store.unsaved.Drop(&c.unsaved)
}

// insert adds a page that was loaded, and makes room for it.
func (c *cache) insert(k table.PageKey, head *page) *cachedPage {
	p := c.add(k, head)
	c.evict()
	return p
}

// add adds a page that was loaded. Room is to be made for it (evict).
func (c *cache) add(k table.PageKey, head *page) *cachedPage {
	p := &cachedPage{head: head}
	p.used.set()
	c.pages[k] = p
	return p
}

// noteHeld counts the pages that may be dropped.
func (c *cache) noteHeld() {
	if !c.closed {
		c.store.cached.Note(&c.held, int64(len(c.pages)-c.pinned))
	}
}

// evict drops pages that were not used lately until the budget of all caches is kept. It looks at a bounded number of
// pages (the order of a map is random enough) and never drops pinned ones.
func (c *cache) evict() {
	c.noteHeld()
	over := c.store.cached.Over(&c.held)
	if over <= 0 {
		return
	}
	defer c.noteHeld()
	looks := 32
	for k, p := range c.pages {
		if looks--; looks < 0 || over <= 0 {
			return
		}
		if p.pinned || p.used.clear() {
			continue
		}
		delete(c.pages, k)
		over--
	}
}

// writable returns the version to change at an epoch: the newest one if it is of that epoch and not frozen, otherwise a
// copy, or the version that follows it.
func (c *cache) writable(k table.PageKey, cp *cachedPage, epoch storage.Epoch) *page {
	p := cp.head
	switch {
	case p == nil:
		p = &page{Page: table.Page{Epoch: epoch}}
	case p.Epoch < epoch:
		if p.dirtySince != 0 {
			cp.older = append(cp.older, p)
		}
		cp.alone.Store(false) // I1: the one before stays in Pebble, or gets there
		p = &page{Page: p.Fork(epoch, c.store.byEpoch())}
		c.delta.Count(&p.Page, 1)
	case p.dirtySince == c.freezes:
		return p
	case p.dirtySince != 0: // frozen
		p = p.clone()
	}
	cp.head = p
	c.markDirty(k, cp, p)
	return p
}

func (c *cache) markDirty(k table.PageKey, cp *cachedPage, p *page) {
	p.dirtySince = c.freezes
	c.dirty[table.VersionKey{PageKey: k, Epoch: p.Epoch}] = p
	c.store.changed.Add(&c.changed, 1)
	c.store.unsaved.Add(&c.unsaved, 1)
	if !cp.pinned {
		cp.pinned = true
		c.pinned++
		c.pinnedExtents[k.ID()]++
	}
}

// unpin lets the page go if the last checkpoint holds all its versions.
func (c *cache) unpin(k table.PageKey, cp *cachedPage) {
	if cp.pinned && len(cp.older) == 0 && (cp.head == nil || cp.head.dirtySince == 0) {
		cp.pinned = false
		c.pinned--
		if id := k.ID(); c.pinnedExtents[id] > 1 {
			c.pinnedExtents[id]--
		} else {
			delete(c.pinnedExtents, id)
		}
	}
}

// freeze returns the versions that were changed since the last freeze. They do not change any more: writable copies them.
func (c *cache) freeze() (frozen map[table.VersionKey]*page) {
	frozen, c.dirty = c.dirty, map[table.VersionKey]*page{}
	c.freezes++
	c.store.changed.Drop(&c.changed)
	return frozen
}

// persisted says that Pebble holds what freeze returned, in the form by epoch or not.
func (c *cache) persisted(frozen map[table.VersionKey]*page, byEpoch bool) {
	c.persists++
	c.store.unsaved.Add(&c.unsaved, -int64(len(frozen)))
	for v, p := range frozen {
		p.dirtySince, p.Indexed = 0, byEpoch
		cp := c.pages[v.PageKey]
		for i, old := range cp.older {
			if old == p {
				cp.older = append(cp.older[:i], cp.older[i+1:]...)
				break
			}
		}
		c.unpin(v.PageKey, cp)
	}
	c.noteHeld()
}

// thaw makes what freeze returned changes that the next freeze takes.
func (c *cache) thaw(frozen map[table.VersionKey]*page) {
	for v, p := range frozen {
		if _, newer := c.dirty[v]; !newer {
			p.dirtySince = c.freezes
			c.dirty[v] = p
			c.store.changed.Add(&c.changed, 1)
			continue
		}
		// A newer copy of the same version took its place: no page has the frozen one.
		c.store.unsaved.Add(&c.unsaved, -1)
	}
}

// forget drops a deleted volume's pages, which were removed from Pebble. None of them is dirty: nothing was written since the
// tombstone, which the last checkpoint holds.
func (c *cache) forget(id storage.VolumeID) {
	c.persists++
	maps.DeleteFunc(c.pages, func(k table.PageKey, cp *cachedPage) bool { return k.Volume == id && !cp.pinned })
	c.noteHeld()
}

// unsavedExtents returns the extents of the range with pages that the last checkpoint does not hold, in any order.
func (c *cache) unsavedExtents(r op.MappedRequest) (found []storage.ExtentIndex) {
	if int(r.End-r.First) <= len(c.pinnedExtents) {
		for x := r.First; x < r.End; x++ {
			if c.pinnedExtents[table.ExtentID{Volume: r.Volume, Extent: x}] > 0 {
				found = append(found, x)
			}
		}
		return found
	}
	for id := range c.pinnedExtents {
		if id.Volume == r.Volume && r.First <= id.Extent && id.Extent < r.End {
			found = append(found, id.Extent)
		}
	}
	return found
}
