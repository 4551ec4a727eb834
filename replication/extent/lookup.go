package extent

import (
	"math"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/op"
)

// load reads the newest version with an epoch not above e from Pebble, whole; nil if there is none.
func (g *Group) load(set table.SetID, k table.PageKey, e storage.Epoch) (*page, error) {
	p := new(page)
	found, err := tableset.Page(g.store.db, set, k, 0, e, &p.Page)
	g.store.loaded()
	if !found {
		return nil, err
	}
	return p, err
}

// applyPageLocked returns a page for the goroutine that applies. It may give up the lock while it reads Pebble.
func (g *Group) applyPageLocked(k table.PageKey) (*cachedPage, error) {
	for {
		if s := g.cache.pages[k]; s != nil {
			s.used.set()
			return s, nil
		}
		set, persists := g.set.id, g.cache.persists
		g.mu.Unlock()
		p, err := g.load(set, k, storage.Epoch(math.MaxUint64))
		g.mu.Lock()
		if err != nil {
			return nil, err
		}
		// I1: blocks of the page that were loaded may have been moved and the page written meanwhile.
		if g.cache.pages[k] == nil && g.cache.persists == persists {
			return g.cache.insert(k, p), nil
		}
	}
}

// lookup copies the entries of blocks [first, first+len(out)) of the newest version with an epoch not above e. Each
// page is copied whole, at one moment; different pages may be of different moments.
func (g *Group) lookup(v storage.VolumeID, x storage.ExtentIndex, e storage.Epoch, first int, out []table.Entry) error {
	return table.Pieces(first, len(out), func(pageNo uint8, at, from, to int) error {
		return g.lookupPage(table.PageKey{Volume: v, Extent: x, Page: pageNo}, e, at, out[from:to])
	})
}

// Maps reports whether the newest version maps every block of an operation's range.
func (g *Group) Maps(o *op.Op) (bool, error) {
	first, n := o.Blocks()
	entries := make([]table.Entry, n)
	if err := g.lookup(o.Volume, o.Extent, op.HeadEpoch, first, entries); err != nil {
		return false, err
	}
	return !slices.ContainsFunc(entries, func(e table.Entry) bool { return !e.Mapped() }), nil
}

func (g *Group) lookupPage(k table.PageKey, e storage.Epoch, at int, out []table.Entry) error {
	for {
		g.mu.RLock()
		s := g.cache.pages[k]
		set, persists := g.set.id, g.cache.persists
		older := false
		if s != nil {
			p, sure := s.at(e)
			if sure {
				copyEntries(out, p, at)
				g.mu.RUnlock()
				s.used.set()
				return nil
			}
			older = len(s.older) > 0
		}
		g.mu.RUnlock()

		var p *page
		var stored map[table.PageKey][]*page
		var err error
		switch {
		case s == nil:
			p, err = g.load(set, k, storage.Epoch(math.MaxUint64))
		case older: // it may be one of those, or inherit from one
			stored, err = g.loadAll(set, []table.PageKey{k})
		default:
			p, err = g.load(set, k, e)
		}
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
		if older {
			p, err = g.cache.asOf(k, stored[k], e)
		}
		if err == nil {
			copyEntries(out, p, at)
		}
		g.mu.Unlock()
		return err
	}
}

func copyEntries(out []table.Entry, p *page, at int) {
	if p == nil {
		clear(out)
		return
	}
	copy(out, p.Entries[at:at+len(out)])
}
