package extent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	storage "github.com/storaged/storaged"
)

// Frozen is a group as it was at one applied index, on its way into a checkpoint. It costs no copy: pages that are
// changed from here on are copied first.
type Frozen struct {
	g       *Group
	set     tableSet // the group's at the time; an install makes the frozen state worthless
	index   uint64
	pages   map[versionKey]*page // do not change any more
	volumes []pair               // encoded
	purges  [][]byte             // keys that say which volumes' tables are to be removed
	seq     uint64               // dirtySince of its pages
	bytes   int64                // of log, since the freeze before

	done bool // persisted; guarded by g.mu
}

// pair is what Pebble is to hold; without a value, it is to hold nothing under the key.
type pair struct{ key, value []byte }

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
	f := &Frozen{g: g, set: g.set, index: g.applied, pages: g.dirty, seq: g.freezes, bytes: g.store.written.drop(&g.sinceFreeze)}
	for id := range g.dirtyVolumes {
		key := volumeKey(keyVolume, g.set.id, id)
		var value []byte
		if v := g.volumes[id]; v != nil {
			value = v.appendValue(nil, key)
		}
		f.volumes = append(f.volumes, pair{key, value})
	}
	for id := range g.purgeDue {
		f.purges = append(f.purges, volumeKey(keyPurge, g.set.id, id))
	}
	clear(g.purgeDue)
	g.frozen = f
	g.freezes++
	g.dirty = map[versionKey]*page{}
	clear(g.dirtyVolumes)
	g.set.live.freeze()
	g.store.changed.drop(&g.dirtyPages)
	g.wanted.Store(false)
	g.dueAnnounced = false
	return f, nil
}

// Index returns the applied index of the frozen state.
func (f *Frozen) Index() uint64 { return f.index }

// Persist makes the frozen state durable as the group's checkpoint, under the index and term of the last entry that
// the state machine was given, and the configuration as of then. Entries between the frozen index and index must
// have had no effect here. It waits until the log is durable up to index. The error is of KindConflict if a manifest
// was installed meanwhile.
func (f *Frozen) Persist(index, term uint64, config []byte, configIndex uint64) error {
	g := f.g
	fail := func(kind storage.Kind, err error) error {
		return storage.E("write checkpoint of", kind, "group "+g.key.String(), err)
	}
	if index < f.index || len(config) > MaxConfigBytes {
		return fail(storage.KindInternal, fmt.Errorf("index %d below %d, or a configuration of %d bytes", index, f.index, len(config)))
	}
	start := time.Now()
	// Guards I1 and I7: a checkpoint never records an applied index beyond the durable log. Were the tail lost in a
	// power cut, the tables would point at nothing, and the replica would hold what it never acknowledged.
	end, ok := g.log.EndOf(index, term)
	if !ok {
		return fail(storage.KindInternal, fmt.Errorf("entry %d of term %d is not in the log", index, term))
	}
	if err := g.store.log.Wait(context.Background(), end); err != nil {
		return fail(storage.KindOf(err), err)
	}
	if err := f.commit(Checkpoint{Index: index, Term: term, Config: append([]byte(nil), config...), ConfigIndex: configIndex}); err != nil {
		return fail(storage.KindOf(err), err)
	}
	g.store.metrics.checkpoint(len(f.pages), time.Since(start))
	g.store.afterCheckpoint(len(f.purges) > 0)
	return nil
}

func (f *Frozen) commit(c Checkpoint) error {
	g := f.g
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	stale := g.set.id != f.set.id || g.removed || f.done || g.frozen != f
	g.mu.RUnlock()
	if stale {
		return storage.E("commit", storage.KindConflict, "checkpoint", errors.New("the replica was replaced meanwhile"))
	}
	record := groupRecord{set: f.set.id, from: g.log.NextNeeded(c.Index), Checkpoint: c}
	if err := g.store.meta.commit(func(b *pebble.Batch) error { return f.fill(b, &record) }); err != nil {
		return err
	}
	g.mu.Lock()
	g.record = record
	f.persistedLocked()
	g.mu.Unlock()
	g.store.log.DurableCheckpoint(g.key, c.Index, c.Term, record.from)
	return nil
}

// fill puts all of a checkpoint into one batch: tables, live counts, small state and applied index are never of
// different moments.
func (f *Frozen) fill(b *pebble.Batch, record *groupRecord) error {
	key := make([]byte, 0, pageKeyLen)
	value := make([]byte, 0, maxPageLen)
	for v, p := range f.pages {
		key = appendPageKey(key[:0], f.set.id, v.pageKey, v.epoch)
		value = p.appendValue(value[:0], key)
		if err := b.Set(key, value, nil); err != nil {
			return err
		}
	}
	if err := fillLive(b, f.set.id, f.set.live.next()); err != nil {
		return err
	}
	for _, v := range f.volumes {
		var err error
		if v.value == nil {
			err = b.Delete(v.key, nil)
		} else {
			err = b.Set(v.key, v.value, nil)
		}
		if err != nil {
			return err
		}
	}
	for _, k := range f.purges {
		if err := b.Set(k, seal(k, []byte{1}), nil); err != nil {
			return err
		}
	}
	k := groupKeyBytes(keyGroup, f.g.key)
	return b.Set(k, record.appendValue(nil, k), nil)
}

func fillLive(b *pebble.Batch, set setID, live counts) error {
	for no, n := range live {
		k := liveKey(set, no)
		var err error
		if n == 0 {
			err = b.Delete(k, nil)
		} else {
			err = b.Set(k, liveValue(k, n), nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// persistedLocked marks what was not changed since the freeze as held by the checkpoint.
func (f *Frozen) persistedLocked() {
	g := f.g
	f.done = true
	g.persists++
	g.store.unsaved.add(&g.unsaved, -int64(len(f.pages)))
	f.set.live.persisted()
	for v, p := range f.pages {
		p.dirtySince = 0
		s := g.slots[v.pageKey]
		for i, old := range s.older {
			if old == p {
				s.older = append(s.older[:i], s.older[i+1:]...)
				break
			}
		}
		g.unpinLocked(v.pageKey, s)
	}
	g.noteCachedLocked()
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
	f.set.live.thaw()
	g.store.written.add(&g.sinceFreeze, f.bytes)
	if len(f.purges) > 0 {
		g.wanted.Store(true)
	}
	for v, p := range f.pages {
		if _, newer := g.dirty[v]; !newer {
			p.dirtySince = g.freezes
			g.dirty[v] = p
			g.store.changed.add(&g.dirtyPages, 1)
			continue
		}
		// A newer copy of the same version took its place: the frozen one is not in any slot.
		g.store.unsaved.add(&g.unsaved, -1)
	}
	for _, v := range f.volumes {
		g.dirtyVolumes[parseVolumeKey(v.key)] = struct{}{}
	}
	for _, key := range f.purges {
		g.purgeDue[parseVolumeKey(key)] = struct{}{}
	}
}
