package extent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/sched"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/extent/tableset"
)

// Frozen is a group as it was at one applied index, on its way into a checkpoint. It costs no copy: pages that are
// changed from here on are copied first.
type Frozen struct {
	g       *Group
	set     tableSet // the group's at the time; an install makes the frozen state worthless
	index   uint64
	pages   map[table.VersionKey]*page // do not change any more
	volumes []table.Change             // encoded
	purges  [][]byte                   // keys that say which volumes' tables are to be removed
	bytes   int64                      // of log, since the freeze before

	done bool // persisted; guarded by g.mu
}

// Freeze takes the state as it is, for Persist. It is called by the goroutine that applies; Release must follow. The
// error is of KindConflict while another one is not released, or of KindIO on a failed disk.
func (g *Group) Freeze() (*Frozen, error) {
	fail := func(kind storage.Kind, err error) (*Frozen, error) {
		return nil, storage.E("checkpoint", kind, "group "+g.key.String(), err)
	}
	if err := g.store.Failed(); err != nil {
		return fail(storage.KindIO, err)
	}
	if err := g.Damage(); err != nil { // the index that comes with Persist would be beyond what was applied
		return fail(storage.KindOf(err), err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.frozen != nil {
		return fail(storage.KindConflict, errors.New("another checkpoint is being written"))
	}
	f := &Frozen{g: g, set: g.set, index: g.applied, pages: g.cache.freeze(), bytes: g.store.written.Drop(&g.sinceFreeze),
		volumes: g.state.TakeChanged(g.set.id)}
	for id := range g.purgeDue {
		f.purges = append(f.purges, table.VolumeKey(table.KeyPurge, g.set.id, id))
	}
	clear(g.purgeDue)
	g.frozen, g.movedAt = f, time.Time{}
	g.set.live.Freeze()
	g.wanted.Store(false)
	g.dueAnnounced = false
	return f, nil
}

// Persist makes the frozen state durable as the group's checkpoint, under the index and term of the last entry that
// the state machine was given, and the configuration as of then. Entries between the frozen index and index must
// have had no effect here. It waits until the log is durable up to index. The error is of KindConflict if a manifest
// was installed meanwhile.
func (f *Frozen) Persist(index, term uint64, config []byte, configIndex uint64) error {
	g := f.g
	fail := func(kind storage.Kind, err error) error {
		return storage.E("write checkpoint of", kind, "group "+g.key.String(), err)
	}
	if index < f.index || len(config) > table.MaxConfigBytes {
		return fail(storage.KindInternal, fmt.Errorf("index %d below %d, or a configuration of %d bytes", index, f.index, len(config)))
	}
	start := time.Now()
	// Guards I1 and I7: a checkpoint never records an applied index beyond the durable log. Were the tail lost in a
	// power cut, the tables would point at nothing, and the replica would hold what it never acknowledged.
	end, ok := g.log.EndOf(index, term)
	if !ok {
		return fail(storage.KindInternal, fmt.Errorf("entry %d of term %d is not in the log", index, term))
	}
	// No context: Raft has none here. It ends when the disk has failed, or the log waits for room no longer (StopWaiting).
	if err := g.store.log.Wait(context.Background(), end); err != nil {
		return fail(storage.KindOf(err), err)
	}
	if err := f.commit(table.Checkpoint{Index: index, Term: term, Config: append([]byte(nil), config...), ConfigIndex: configIndex}); err != nil {
		return fail(storage.KindOf(err), err)
	}
	g.store.metrics.checkpoint(len(f.pages), time.Since(start))
	g.store.worker.Checkpointed(len(f.purges) > 0)
	return nil
}

func (f *Frozen) commit(c table.Checkpoint) error {
	g := f.g
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	stale := g.set.id != f.set.id || g.removed || f.done || g.frozen != f
	g.mu.RUnlock()
	if stale {
		return storage.E("commit", storage.KindConflict, "checkpoint", errors.New("the replica was replaced meanwhile"))
	}
	record := table.GroupRecord{Set: f.set.id, From: g.log.NextNeeded(c.Index), Checkpoint: c}
	byEpoch := g.store.byEpoch()
	if err := g.store.db.Commit(func(b *tabledb.Batch) { f.fill(b, &record, byEpoch) }); err != nil {
		return err
	}
	g.mu.Lock()
	g.record = record
	f.done = true
	f.set.live.Persisted()
	g.cache.persisted(f.pages, byEpoch)
	g.mu.Unlock()
	g.store.log.DurableCheckpoint(g.key, c.Index, c.Term, record.From)
	return nil
}

// fill puts all of a checkpoint into one batch: tables, live counts, small state and applied index are never of
// different moments.
func (f *Frozen) fill(b tableset.Batch, record *table.GroupRecord, byEpoch bool) {
	w := tableset.PageWriter{Batch: b, Set: f.set.id, ByEpoch: byEpoch}
	// In the order of keys each finds its place in Pebble's memory beside the one before, and nothing else runs while all do.
	for _, v := range slices.SortedFunc(maps.Keys(f.pages), table.VersionKey.Compare) {
		sched.Yield()
		w.Put(v, &f.pages[v].Page)
	}
	tableset.SetLive(b, f.set.id, f.set.live.Next(), byEpoch)
	tableset.SetVolumes(b, f.volumes)
	for _, k := range f.purges {
		b.Set(k, table.Seal(k, []byte{1}))
	}
	tableset.SetGroup(b, f.g.key, record)
}

// Release ends the checkpoint. If it was not persisted, its changes are part of the next one.
func (f *Frozen) Release() {
	g := f.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.frozen != f {
		return
	}
	g.frozen = nil
	if f.done || g.removed || g.set.id != f.set.id {
		return
	}
	f.set.live.Thaw()
	g.store.written.Add(&g.sinceFreeze, f.bytes)
	if len(f.purges) > 0 {
		g.wanted.Store(true)
	}
	g.cache.thaw(f.pages)
	for _, v := range f.volumes {
		g.state.MarkChanged(table.ParseVolumeKey(v.Key))
	}
	for _, key := range f.purges {
		g.purgeDue[table.ParseVolumeKey(key)] = struct{}{}
	}
}
