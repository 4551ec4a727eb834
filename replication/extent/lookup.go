package extent

import (
	"math"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
)

// load reads the newest version with an epoch not above e from Pebble, whole; nil if there is none.
func (g *Group) load(set table.SetID, k table.PageKey, e storage.Epoch) (*page, error) {
	return loadPage(g.store.db, set, k, 0, e)
}

// applyPageLocked returns a page for the goroutine that applies. It may give up the lock while it reads Pebble: nobody
// else changes tables, and what Pebble holds of a page that is not in memory does not change meanwhile.
func (g *Group) applyPageLocked(k table.PageKey) (*cachedPage, error) {
	if s := g.cache.pages[k]; s != nil {
		s.used.set()
		return s, nil
	}
	set := g.set.id
	g.mu.Unlock()
	p, err := g.load(set, k, storage.Epoch(math.MaxUint64))
	g.mu.Lock()
	if err != nil {
		return nil, err
	}
	if s := g.cache.pages[k]; s != nil {
		return s, nil
	}
	return g.cache.insert(k, p), nil
}

// lookup copies the entries of blocks [first, first+len(out)) of the newest version with an epoch not above e. Each
// page is copied whole, at one moment; different pages may be of different moments.
func (g *Group) lookup(v storage.VolumeID, x storage.ExtentIndex, e storage.Epoch, first int, out []table.Entry) error {
	return table.Pieces(first, len(out), func(pageNo uint8, at, from, to int) error {
		return g.lookupPage(table.PageKey{Volume: v, Extent: x, Page: pageNo}, e, at, out[from:to])
	})
}

func (g *Group) lookupPage(k table.PageKey, e storage.Epoch, at int, out []table.Entry) error {
	for {
		g.mu.RLock()
		s := g.cache.pages[k]
		set, persists := g.set.id, g.cache.persists
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
				inMemory = p.clone()
			}
		}
		g.mu.RUnlock()

		want := e
		if s == nil {
			want = storage.Epoch(math.MaxUint64)
		}
		p, err := g.load(set, k, want)
		if err != nil {
			return err
		}
		g.mu.Lock()
		if g.cache.persists != persists || g.set.id != set {
			g.mu.Unlock()
			continue // what was loaded may be old: look again
		}
		if s == nil {
			if g.cache.pages[k] == nil {
				g.cache.insert(k, p)
			}
			g.mu.Unlock()
			continue
		}
		g.mu.Unlock()
		if inMemory != nil && (p == nil || inMemory.Epoch >= p.Epoch) {
			p = inMemory
		}
		copyEntries(out, p, at)
		return nil
	}
}

func copyEntries(out []table.Entry, p *page, at int) {
	if p == nil {
		clear(out)
		return
	}
	copy(out, p.Entries[at:at+len(out)])
}
