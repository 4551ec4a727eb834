package extent

import (
	"errors"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/op"
)

// maxMappedRange bounds the extents that one question covers of a volume that maps anything at all.
const maxMappedRange = 1 << 16

// MappedExtents names the extents of the request's range that map a block in the newest version, from the first on, and
// says how far it has looked. Each extent is looked at once or more between call and return: one that is not named mapped
// nothing at one of these moments.
func (g *Group) MappedExtents(r op.MappedRequest) (op.MappedResponse, error) {
	if err := r.Validate(); err != nil {
		return op.MappedResponse{}, err
	}
	if err := g.checkRead(r.Volume, r.Session, r.Generation); err != nil {
		return op.MappedResponse{}, err
	}
	g.mu.RLock()
	v, set := g.state.Volume(r.Volume), g.set.id
	nothing := v == nil || v.Mapped() == 0
	var found []storage.ExtentIndex
	if !nothing {
		r.End = r.First + min(r.End-r.First, maxMappedRange)
		found = g.cache.unsavedExtents(r)
	}
	g.mu.RUnlock()
	if nothing { // of what was never written and what was discarded as a whole
		return op.MappedResponse{Next: r.End}, nil
	}
	// What is in Pebble only is looked for after what is in memory only: pages move from there to here.
	saved, next, err := tableset.MappedExtents(g.store.db, set, r)
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

// mapsAnything reports whether the newest version of an extent maps a block.
func (g *Group) mapsAnything(v storage.VolumeID, x storage.ExtentIndex) (bool, error) {
	var entries [table.BlocksPerPage]table.Entry
	for page := range uint8(table.PagesPerExtent) {
		if err := g.lookupPage(table.PageKey{Volume: v, Extent: x, Page: page}, op.HeadEpoch, 0, entries[:]); err != nil {
			return false, err
		}
		for i := range entries {
			if entries[i].Mapped() {
				return true, nil
			}
		}
	}
	return false, nil
}
