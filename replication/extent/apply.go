package extent

import (
	"fmt"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// ApplyEntry is one committed entry of the group's log.
type ApplyEntry struct {
	Index, Term uint64
	// IsCommand is false for entries that only move the applied index (configurations, barriers).
	IsCommand bool
	// Data is the entry's data, of which only the header is looked at. It is not kept.
	Data []byte
}

// Apply applies committed entries in order and returns the result of each. Entries at or below the applied index are
// refused with KindInternal. The results are the same on every replica, with two exceptions:
//
//   - When the disk fails, the results are of KindIO. No checkpoint is written any more, and the store's OnFailure is called.
//   - When an entry cannot be decoded, the results from it on are of KindCorrupt. This replica applies and checkpoints nothing
//     more, and Damage says why.
//
// Apply waits for the disk when a page of the tables is not in memory. It never waits for a checkpoint, because checkpoints
// wait for the goroutine that calls Apply. Store.AwaitRoom refuses entries when there is too much to checkpoint.
func (g *Group) Apply(entries []ApplyEntry) []op.Result {
	results := make([]op.Result, len(entries))
	g.applyAll(entries, results)
	g.announceDue()
	return results
}

func (g *Group) applyAll(entries []ApplyEntry, results []op.Result) {
	// Guards I1: of an entry that was copied elsewhere, the segment that locate has named may be recycled before the live counts
	// know that a table refers to it.
	g.applying.Lock()
	defer g.applying.Unlock()
	for i := range entries {
		results[i] = g.applyEntry(&entries[i])
	}
	g.handOnDelta()
}

func (g *Group) applyEntry(e *ApplyEntry) op.Result {
	if err := g.store.Failed(); err != nil {
		return op.Result{Kind: storage.KindIO, Text: "the disk has failed"}
	}
	if g.damage != nil { // changed by this goroutine only, like applied
		return op.Result{Kind: storage.KindCorrupt, Text: g.damage.Error()}
	}
	if e.Index <= g.applied {
		return op.Result{Kind: storage.KindInternal, Text: fmt.Sprintf("entry %d was applied before", e.Index)}
	}
	g.store.written.Add(&g.sinceFreeze, int64(len(e.Data))+entryOverhead)
	if !e.IsCommand {
		g.mu.Lock()
		g.applied, g.term = e.Index, e.Term
		g.mu.Unlock()
		return op.Result{}
	}
	o, payload, err := op.Decode(e.Data)
	if err != nil {
		return g.cannotApply(e, err)
	}
	var data segment.Position
	if o.Kind == op.Write {
		if data, err = g.locate(e, len(e.Data)-len(payload)); err != nil {
			return op.Result{Kind: storage.KindIO, Text: err.Error()} // the disk has failed
		}
	}
	if o.Kind == op.Digest {
		g.digest(&o, e.Index)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.applied, g.term = e.Index, e.Term
	result, effect := g.state.Decide(&o, e.Term)
	if o.Kind == op.DeleteVolume && result.Kind == storage.KindNone && !result.Duplicate {
		g.purgeDue[o.Volume] = struct{}{}
		g.wanted.Store(true) // after a checkpoint, what it held is freed
	}
	if !effect {
		return result
	}
	if err := g.setEntriesLocked(&o, e.Index, data); err != nil {
		g.store.fail(storage.E("apply", storage.KindOf(err), "group "+g.key.String(), err))
		return op.Result{Kind: storage.KindIO, Text: err.Error()}
	}
	return result
}

// cannotApply ends the replica's part in the group at an entry that cannot be decoded. The group has committed it, and
// other replicas apply it.
//
// I1: skip it instead, and this replica answers with what was before it, under good checksums, as soon as it leads.
func (g *Group) cannotApply(e *ApplyEntry, err error) op.Result {
	kind := storage.KindCorrupt
	if storage.KindOf(err) == storage.KindUnsupported {
		kind = storage.KindUnsupported // it is sound, and of a later version
	}
	damage := storage.E("apply", kind, "group "+g.key.String(), fmt.Errorf("entry %d of term %d: %w", e.Index, e.Term, err))
	g.mu.Lock()
	g.damage = damage
	g.mu.Unlock()
	return op.Result{Kind: storage.KindCorrupt, Text: damage.Error()}
}

// Damage returns why nothing is applied any more; nil while all is well. KindCorrupt: an entry was damaged here.
// KindUnsupported: it is of a later version of storaged.
func (g *Group) Damage() error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.damage == nil {
		return nil
	}
	return g.damage
}

// entryOverhead is what the log writes beside an entry's data, about.
const entryOverhead = 128

// locate returns where the payload of an entry lies. The log must hold the entry, as it was committed.
func (g *Group) locate(e *ApplyEntry, headerLen int) (segment.Position, error) {
	term, data, n, _, ok := g.log.Location(e.Index)
	if !ok || term != e.Term || n != len(e.Data) {
		err := storage.E("apply", storage.KindInternal, "group "+g.key.String(), fmt.Errorf(
			"entry %d of term %d with %d bytes is not in the log (found %v, term %d, %d bytes)", e.Index, e.Term, len(e.Data), ok, term, n))
		g.store.fail(err)
		return 0, err
	}
	return segment.PositionOf(data.Segment(), data.Offset()+uint32(headerLen)), nil
}

// setEntriesLocked points the blocks of a write at its payload, or unmaps those of a clear.
func (g *Group) setEntriesLocked(o *op.Op, index uint64, data segment.Position) error {
	first, n := o.Blocks()
	v := g.state.Volume(o.Volume) // it has admitted the operation
	return table.Pieces(first, n, func(pageNo uint8, at, from, to int) error {
		k := table.PageKey{Volume: o.Volume, Extent: o.Extent, Page: pageNo}
		cached, err := g.applyPageLocked(k)
		if err != nil {
			return err
		}
		if o.Kind == op.Clear {
			g.clearPageLocked(k, cached, o, index, at, to-from)
			return nil
		}
		p := g.cache.writable(k, cached, o.Epoch)
		p.Index = index
		for i := range to - from {
			if !p.Entries[at+i].Mapped() {
				v.BumpMapped(1)
			}
			p.Set(at+i, table.Entry{Segment: data.Segment(), Offset: data.Offset() + uint32(from+i)*storage.BlockSize, Sum: o.SumAt(from + i)},
				g.cache.delta)
		}
		return nil
	})
}

// clearPageLocked unmaps entries. A page in which nothing changes is left alone: clearing what was never written
// costs nothing.
func (g *Group) clearPageLocked(k table.PageKey, cached *cachedPage, o *op.Op, index uint64, at, n int) {
	if cached.head == nil {
		return
	}
	mapped := false
	for i := range n {
		mapped = mapped || cached.head.Entries[at+i].Mapped()
	}
	if !mapped {
		return
	}
	p := g.cache.writable(k, cached, o.Epoch)
	p.Index = index
	for i := range n {
		if p.Entries[at+i].Mapped() {
			g.state.Volume(o.Volume).BumpMapped(-1)
			p.Unmap(at+i, g.cache.delta)
		}
	}
}

// handOnDelta tells the live counts what Apply has changed. Until then a segment that lost its last block still counts as
// in use, and the log still needs the segment that was written now.
func (g *Group) handOnDelta() {
	if len(g.cache.delta) == 0 {
		return
	}
	g.set.live.Change(g.cache.delta) // set is changed by this goroutine only
	clear(g.cache.delta)
}

// announceDue asks for a checkpoint when enough was written since the last one. All groups of the disk share
// CheckpointBytes. So tables cost little beside data, even if few groups are written to, and a start reads a bounded part of
// the log.
func (g *Group) announceDue() {
	if !g.dueAnnounced && g.CheckpointDue() {
		g.dueAnnounced = true
		g.store.cfg.OnCheckpointDue(g.key)
	}
}

// CheckpointDue reports whether the group should be checkpointed: the disk's groups have applied CheckpointBytes, or changed
// so many pages that they would not fit beside the cache, and this one its part of that.
func (g *Group) CheckpointDue() bool {
	return g.wanted.Load() || g.store.written.Over(&g.sinceFreeze) >= 0 || g.store.changed.Over(&g.cache.changed) >= 0
}
