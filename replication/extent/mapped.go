package extent

import (
	"errors"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

const (
	// maxMappedPages bounds the pages that one question of MappedExtents has looked at in Pebble, about.
	maxMappedPages = 4096
	// maxMappedRange bounds the extents that one question covers of a volume that maps anything at all.
	maxMappedRange = 1 << 16
)

// MappedExtents names the extents of the request's range that map a block in the newest version, from the first on, and
// says how far it has looked. Each extent is as it was at one moment between call and return, or several: what is not
// named mapped nothing at one of them.
func (g *Group) MappedExtents(r op.MappedRequest) (op.MappedResponse, error) {
	if err := r.Validate(); err != nil {
		return op.MappedResponse{}, err
	}
	if err := g.checkRead(r.Volume, r.Session, r.Generation); err != nil {
		return op.MappedResponse{}, err
	}
	g.mu.RLock()
	v, set := g.volumes[r.Volume], g.set.id
	nothing := v == nil || v.mapped == 0
	var found []storage.ExtentIndex
	if !nothing {
		r.End = r.First + min(r.End-r.First, maxMappedRange)
		found = g.unsavedExtentsLocked(r)
	}
	g.mu.RUnlock()
	if nothing { // of what was never written and what was discarded as a whole
		return op.MappedResponse{Next: r.End}, nil
	}
	// What is in Pebble only is looked for after what is in memory only: pages move from there to here.
	saved, next, err := g.savedExtents(set, r)
	if err != nil {
		return op.MappedResponse{}, err
	}
	found = append(found, saved...)
	slices.Sort(found)
	found = slices.Compact(found)
	if len(found) > op.MaxMappedExtents {
		next = min(next, found[op.MaxMappedExtents])
	}
	answer := op.MappedResponse{Next: next}
	for _, x := range found {
		if x >= next {
			break
		}
		maps, err := g.mapsAnything(r.Volume, x)
		if err != nil {
			return op.MappedResponse{}, err
		}
		if maps {
			answer.Extents = append(answer.Extents, x)
		}
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.set.id != set {
		return op.MappedResponse{}, storage.E("mapped extents", storage.KindUnavailable, "group "+g.key.String(), errors.New("the replica was replaced meanwhile"))
	}
	return answer, nil
}

// unsavedExtentsLocked returns the extents of the range with pages that the last checkpoint does not hold, in any order.
func (g *Group) unsavedExtentsLocked(r op.MappedRequest) (found []storage.ExtentIndex) {
	if int(r.End-r.First) <= len(g.pinnedExtents) {
		for x := r.First; x < r.End; x++ {
			if g.pinnedExtents[extentID{r.Volume, x}] > 0 {
				found = append(found, x)
			}
		}
		return found
	}
	for id := range g.pinnedExtents {
		if id.volume == r.Volume && r.First <= id.extent && id.extent < r.End {
			found = append(found, id.extent)
		}
	}
	return found
}

// savedExtents returns the extents in [r.First, next) whose newest version in Pebble maps a block, in ascending order.
func (g *Group) savedExtents(set setID, r op.MappedRequest) (found []storage.ExtentIndex, next storage.ExtentIndex, err error) {
	first := pageKey{volume: r.Volume, extent: r.First}
	from := appendPageKey(nil, set, first, storage.Epoch(maxUint64))
	to := appendPageKey(nil, set, pageKey{volume: r.Volume, extent: r.End}, storage.Epoch(maxUint64))
	next = r.End
	last, pages := pageKey{}, 0 // volumes count from 1
	err = g.store.meta.scan(from, to, func(key, value []byte) (bool, error) {
		_, v, ok := parsePageKey(key)
		if !ok {
			return false, corrupt("mapped extents", "the key %x is not of a page", key)
		}
		if v.pageKey == last { // an older version
			return true, nil
		}
		if v.extent != last.extent && (pages >= maxMappedPages || len(found) == op.MaxMappedExtents) {
			next = v.extent
			return false, nil
		}
		last = v.pageKey
		pages++
		if n := len(found); n > 0 && found[n-1] == v.extent {
			return true, nil
		}
		p, err := decodePage(key, value)
		if err == nil && p.bitmap() != 0 {
			found = append(found, v.extent)
		}
		return true, err
	})
	return found, next, err
}

// mapsAnything reports whether the newest version of an extent maps a block.
func (g *Group) mapsAnything(v storage.VolumeID, x storage.ExtentIndex) (bool, error) {
	var entries [blocksPerPage]entry
	for page := range uint8(pagesPerExtent) {
		if err := g.lookupPage(pageKey{v, x, page}, op.HeadEpoch, 0, entries[:]); err != nil {
			return false, err
		}
		for i := range entries {
			if entries[i].mapped() {
				return true, nil
			}
		}
	}
	return false, nil
}
