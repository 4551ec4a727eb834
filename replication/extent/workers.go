package extent

import (
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/reclaim"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/segment"
)

// What the workers of package reclaim see of a store.

// newWorker returns the worker of an open store.
func (s *Store) newWorker() *reclaim.Worker {
	return reclaim.New(reclaim.Config{
		Segments: segments{s.log, &s.live}, Tables: purges{s},
		Room: func() (level reclaim.Room, ok bool) {
			if s.Failed() != nil {
				return 0, false
			}
			level = s.room.Level()
			s.setTight(level != reclaim.Enough)
			s.log.HoldWithin(s.room.MayHold())
			if level == reclaim.Full {
				s.closeManifestForRoom()
			}
			if len(s.stagedDue()) > 0 {
				s.worker.Purge()
			}
			return level, true
		},
		Logger:       s.logger,
		LateSegments: segment.SegmentNo(s.cfg.CheckpointBytes / s.cfg.SegmentBytes), SegmentBytes: s.cfg.SegmentBytes,
		Replicas: func() []reclaim.Replica {
			s.mu.Lock()
			defer s.mu.Unlock()
			replicas := make([]reclaim.Replica, 0, len(s.groups))
			for _, g := range s.groups {
				replicas = append(replicas, replica{g})
			}
			return replicas
		},
	})
}

// setTight follows how much room there is.
func (s *Store) setTight(tight bool) {
	if s.room.SetTight(tight) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.shareLocked()
	}
}

// segments implements reclaim.Segments.
type segments struct {
	log  *segment.Log
	live *live.Index
}

func (s segments) Dead() (dead []segment.SegmentNo) {
	for _, info := range s.log.Segments() {
		if info.State == segment.SegmentSealed && !s.live.InUse(info.No) { // most are, and need not hold up the log
			dead = append(dead, info.No)
		}
	}
	return dead
}

// Recycle guards I1: a segment is recycled only when neither memory nor a durable checkpoint refers to it, at a moment when
// the log does not need it any more.
func (s segments) Recycle(no segment.SegmentNo) error {
	return s.log.Recycle(no, func() bool { return s.live.InUse(no) })
}

func (s segments) Last() segment.SegmentNo { return s.log.Durable().Segment() }

// replica implements reclaim.Replica.
type replica struct{ *Group }

func (r replica) Changed() (changed bool, freezes uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.sinceFreeze.Load() != 0, r.cache.freezes
}

func (r replica) RecoveryFrom() segment.SegmentNo {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.record.From.Segment()
}

// Advance stores a later recovery position with the checkpoint as it is, if there is one.
func (r replica) Advance() (moved bool, err error) {
	r.commitMu.Lock()
	defer r.commitMu.Unlock()
	if r.copies != nil && r.applying.TryLock() { // else the next time: it may wait for the disk
		if r.copies.Adopt() {
			r.copies = nil
		}
		r.applying.Unlock()
	}
	r.mu.RLock()
	record, removed := r.record, r.removed
	r.mu.RUnlock()
	next := r.log.NextNeeded(record.Index)
	if removed || next.Segment() <= record.From.Segment() {
		return false, nil
	}
	record.From = next
	if err := r.store.db.Commit(func(b *tabledb.Batch) { tableset.SetGroup(b, r.key, &record) }); err != nil {
		return false, err
	}
	r.mu.Lock()
	r.record = record
	r.mu.Unlock()
	r.store.log.DurableCheckpoint(r.key, record.Index, record.Term, next)
	return true, nil
}

func (r replica) UncoveredBytes() int64 { return r.log.UncoveredBytes() }

// maxCopyBytes bounds the entries that are copied at once, in memory: as much as a group has proposed and not applied
// (replication.Config.GroupInFlightBytes).
const maxCopyBytes = 32 << 20

// Copy appends the entries that no checkpoint covers once more, unless copies of them are on their way, or there is no room: they may take of
// the reserve what compaction may, because what they hold is not free before they are copied. Advance
// moves the position when they are durable: nobody waits for that here, because room in the log may come by way of the caller.
func (r replica) Copy() (begun bool, err error) {
	// A build that does not know of copies takes them for damage as long as it finds both: it does not open this format.
	if r.store.format.Load() < storedir.PagesByEpoch {
		return false, nil
	}
	if r.store.Space().FreeBytes-r.log.UncoveredBytes() < compact.LeastSegments*r.store.cfg.SegmentBytes {
		return false, nil
	}
	r.commitMu.Lock()
	defer r.commitMu.Unlock()
	if r.copies != nil {
		return true, nil
	}
	r.copies, err = r.log.CopyUncovered(maxCopyBytes)
	return r.copies != nil, err
}

// purgeStepPages bounds the pages that one step of a purge removes.
const purgeStepPages = 256

// purges implements reclaim.Tables. What is to be removed is durable (table.KeyPurge), and each step is one batch with the
// live counts that it changes.
type purges struct{ s *Store }

// Purge drops what is kept of pulls before anything else: that is one small batch.
func (p purges) Purge() (freed, more bool, err error) {
	if due := p.s.stagedDue(); len(due) > 0 {
		dropped, err := p.s.dropStaged(due...)
		if dropped || err != nil {
			return dropped, err == nil, err
		}
	}
	key, _, ok, err := p.s.db.First([]byte{table.KeyPurge}, []byte{table.KeyPurge + 1})
	if err != nil || !ok {
		return false, false, err
	}
	if len(key) != table.VolumeKeyLen {
		return false, false, table.Corrupt("purge", "key %x", key)
	}
	set, _ := table.SetOf(key)
	g := p.replicaOf(set)
	if g == nil { // a staging, which is not installed yet, or a set that was removed just now
		return false, false, nil
	}
	freed, err = p.step(g, set, table.ParseVolumeKey(key), key)
	return freed, err == nil, err
}

// replicaOf returns the replica whose tables the set is; nil if there is none.
func (p purges) replicaOf(set table.SetID) *Group {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, g := range p.s.groups {
		g.mu.RLock()
		found := g.set.id == set
		g.mu.RUnlock()
		if found {
			return g
		}
	}
	return nil
}

func (p purges) step(g *Group, set table.SetID, id storage.VolumeID, purgeKey []byte) (done bool, err error) {
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	counts, current := g.set.live, g.set.id == set && !g.removed
	g.mu.RUnlock()
	if !current {
		return false, nil
	}
	prefix := table.VolumeKey(table.KeyPage, set, id)
	var keys [][]byte
	delta := table.Counts{}
	err = p.s.db.Scan(prefix, table.AfterPrefix(prefix), func(k, v []byte) (bool, error) {
		var page table.Page
		if err := page.Decode(k, v); err != nil {
			return false, err
		}
		delta.Count(&page, -1)
		keys = append(keys, slices.Clone(k))
		return len(keys) < purgeStepPages, nil
	})
	if err != nil {
		return false, err
	}
	done = len(keys) < purgeStepPages
	err = p.s.db.Commit(func(b *tabledb.Batch) {
		for _, k := range keys {
			b.Delete(k)
		}
		if done {
			index := table.VolumeKey(table.KeyIndex, set, id)
			b.DeleteRange(index, table.AfterPrefix(index))
			b.Delete(purgeKey)
		}
		tableset.SetLive(b, set, counts.After(delta), p.s.byEpoch())
	})
	if err != nil {
		return false, err
	}
	counts.ChangeDurable(delta)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cache.forget(id)
	return done, nil
}
