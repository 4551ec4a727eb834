package extent

import (
	storage "github.com/storaged/storaged"
)

// slot is what memory holds of one page in all its versions: the newest, and those older ones that no checkpoint
// holds yet. The group's lock guards it, but for used.
type slot struct {
	head  *page   // the newest version; nil: it is known that there is none
	older []*page // ascending epochs, all dirty or frozen; each below head's
	// pinned: a version is not in the last checkpoint, so that the slot must stay.
	pinned bool
	used   used
}

// at returns the newest version in memory with an epoch not above e. sure is false if Pebble may hold a newer one.
func (s *slot) at(e storage.Epoch) (p *page, sure bool) {
	if s.head == nil || e >= s.head.epoch {
		return s.head, true
	}
	for i := len(s.older) - 1; i >= 0; i-- {
		if s.older[i].epoch <= e {
			return s.older[i], s.older[i].epoch == e
		}
	}
	return nil, false
}

// load reads the newest version with an epoch not above e from Pebble; nil if there is none.
func (g *Group) load(set setID, k pageKey, e storage.Epoch) (*page, error) {
	var room [2 * pageKeyLen]byte
	from := appendPageKey(room[:0], set, k, e)
	to := append(appendPageKey(room[pageKeyLen:pageKeyLen], set, k, 0), 0)
	var p *page
	err := g.store.meta.scan(from, to, func(key, value []byte) (bool, error) {
		var err error
		p, err = decodePage(key, value)
		return false, err
	})
	return p, err
}

// applySlotLocked returns the slot of a page for the goroutine that applies. It may give up the lock while it reads
// Pebble: nobody else changes tables, and what Pebble holds of a page that is not in memory does not change meanwhile.
func (g *Group) applySlotLocked(k pageKey) (*slot, error) {
	if s := g.slots[k]; s != nil {
		s.used.set()
		return s, nil
	}
	set := g.set.id
	g.mu.Unlock()
	p, err := g.load(set, k, storage.Epoch(maxUint64))
	g.mu.Lock()
	if err != nil {
		return nil, err
	}
	if s := g.slots[k]; s != nil {
		return s, nil
	}
	return g.insertLocked(k, p), nil
}

func (g *Group) insertLocked(k pageKey, head *page) *slot {
	s := &slot{head: head}
	s.used.set()
	g.slots[k] = s
	g.evictLocked()
	return s
}

// noteCachedLocked counts the slots that may be dropped.
func (g *Group) noteCachedLocked() {
	if !g.removed {
		g.store.cached.note(&g.cached, int64(len(g.slots)-g.pinned))
	}
}

// evictLocked drops slots that were not used lately until the cache's budget is kept. It looks at a bounded number of
// slots (the order of a map is random enough) and never at pinned ones.
func (g *Group) evictLocked() {
	g.noteCachedLocked()
	over := g.store.cached.over(&g.cached)
	if over <= 0 {
		return
	}
	defer g.noteCachedLocked()
	looks := 32
	for k, s := range g.slots {
		if looks--; looks < 0 || over <= 0 {
			return
		}
		if s.pinned || s.used.clear() {
			continue
		}
		delete(g.slots, k)
		over--
	}
}

// writableLocked returns the page of the slot to change at an epoch: the newest version if it is of that epoch and not
// frozen, otherwise a copy. The entries of a copied version count as references of their own.
func (g *Group) writableLocked(k pageKey, s *slot, epoch storage.Epoch) *page {
	p := s.head
	switch {
	case p == nil:
		p = &page{epoch: epoch}
	case p.epoch < epoch:
		if p.dirtySince != 0 {
			s.older = append(s.older, p)
		}
		p = p.clone(epoch)
		for i := range p.entries {
			if e := &p.entries[i]; e.mapped() {
				g.delta.bump(e.segment, 1)
			}
		}
	case p.dirtySince == g.freezes:
		return p
	case p.dirtySince != 0: // frozen
		p = p.clone(epoch)
	}
	s.head = p
	g.markDirtyLocked(k, s, p)
	return p
}

func (g *Group) markDirtyLocked(k pageKey, s *slot, p *page) {
	p.dirtySince = g.freezes
	g.dirty[versionKey{k, p.epoch}] = p
	g.store.changed.add(&g.dirtyPages, 1)
	g.store.unsaved.add(&g.unsaved, 1)
	if !s.pinned {
		s.pinned = true
		g.pinned++
		g.pinnedExtents[k.extentID()]++
	}
}

// unpinLocked lets the slot go if the last checkpoint holds all its versions.
func (g *Group) unpinLocked(k pageKey, s *slot) {
	if s.pinned && len(s.older) == 0 && (s.head == nil || s.head.dirtySince == 0) {
		s.pinned = false
		g.pinned--
		if id := k.extentID(); g.pinnedExtents[id] > 1 {
			g.pinnedExtents[id]--
		} else {
			delete(g.pinnedExtents, id)
		}
	}
}

// lookup copies the entries of blocks [first, first+len(out)) of the newest version with an epoch not above e. Each
// page is copied whole, at one moment; different pages may be of different moments.
func (g *Group) lookup(v storage.VolumeID, x storage.ExtentIndex, e storage.Epoch, first int, out []entry) error {
	return pieces(first, len(out), func(pageNo uint8, at, from, to int) error {
		return g.lookupPage(pageKey{v, x, pageNo}, e, at, out[from:to])
	})
}

func (g *Group) lookupPage(k pageKey, e storage.Epoch, at int, out []entry) error {
	for {
		g.mu.RLock()
		s := g.slots[k]
		set, persists := g.set.id, g.persists
		var inMemory *page
		if s != nil {
			p, sure := s.at(e)
			if sure {
				copyEntries(out, p, at)
				g.mu.RUnlock()
				s.used.set()
				return nil
			}
			if p != nil { // dirty or frozen, it may change: keep a copy in case it is the one
				inMemory = p.clone(p.epoch)
			}
		}
		g.mu.RUnlock()

		want := e
		if s == nil {
			want = storage.Epoch(maxUint64)
		}
		p, err := g.load(set, k, want)
		if err != nil {
			return err
		}
		g.mu.Lock()
		if g.persists != persists || g.set.id != set {
			g.mu.Unlock()
			continue // what was loaded may be old: look again
		}
		if s == nil {
			if g.slots[k] == nil {
				g.insertLocked(k, p)
			}
			g.mu.Unlock()
			continue
		}
		g.mu.Unlock()
		if inMemory != nil && (p == nil || inMemory.epoch >= p.epoch) {
			p = inMemory
		}
		copyEntries(out, p, at)
		return nil
	}
}

func copyEntries(out []entry, p *page, at int) {
	if p == nil {
		clear(out)
		return
	}
	copy(out, p.entries[at:at+len(out)])
}
