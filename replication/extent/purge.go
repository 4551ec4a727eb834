package extent

import (
	"context"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	storage "github.com/storaged/storaged"
)

// purgeStepPages bounds the pages that one step of a purge removes, so that checkpoints do not wait long for it.
const purgeStepPages = 256

func (s *Store) wakePurge() {
	select {
	case s.purge <- struct{}{}:
	default:
	}
}

// runPurge removes the tables of deleted volumes, step by step. What is to be removed is durable (keyPurge), and each
// step is one batch with the live counts it changes: an interrupted purge goes on at the next start.
func (s *Store) runPurge(ctx context.Context) {
	s.wakePurge()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.purge:
		}
		for ctx.Err() == nil {
			more, err := s.purgeStep()
			if err != nil {
				s.logger.Warn("tables of a deleted volume not removed", "err", err)
				break
			}
			if !more {
				break
			}
		}
	}
}

// purgeStep takes one step; false if there is nothing to do.
func (s *Store) purgeStep() (more bool, err error) {
	key, _, ok, err := s.meta.first([]byte{keyPurge}, []byte{keyPurge + 1})
	if err != nil || !ok {
		return false, err
	}
	if len(key) != 17 {
		return false, corrupt("purge", "key %x", key)
	}
	set := setID(be.Uint64(key[1:]))
	g := s.groupOfSet(set)
	if g == nil { // a staging, which is not installed yet, or a set that was removed just now
		return false, nil
	}
	done, err := g.purgeStep(set, parseVolumeKey(key), key)
	if done {
		s.recycle()
	}
	return err == nil, err
}

func (s *Store) groupOfSet(set setID) *Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		g.mu.RLock()
		found := g.set.id == set
		g.mu.RUnlock()
		if found {
			return g
		}
	}
	return nil
}

func (g *Group) purgeStep(set setID, id storage.VolumeID, purgeKey []byte) (done bool, err error) {
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	live, current := g.set.live, g.set.id == set && !g.removed
	g.mu.RUnlock()
	if !current {
		return false, nil
	}
	prefix := volumeKey(keyPage, set, id)
	var keys [][]byte
	delta := counts{}
	err = g.store.meta.scan(prefix, afterPrefix(prefix), func(k, v []byte) (bool, error) {
		p, err := decodePage(k, v)
		if err != nil {
			return false, err
		}
		for i := range p.entries {
			if e := &p.entries[i]; e.mapped() {
				delta.bump(e.segment, -1)
			}
		}
		keys = append(keys, slices.Clone(k))
		return len(keys) < purgeStepPages, nil
	})
	if err != nil {
		return false, err
	}
	done = len(keys) < purgeStepPages
	err = g.store.meta.commit(func(b *pebble.Batch) error {
		for _, k := range keys {
			if err := b.Delete(k, nil); err != nil {
				return err
			}
		}
		if done {
			if err := b.Delete(purgeKey, nil); err != nil {
				return err
			}
		}
		return fillLive(b, set, live.after(delta))
	})
	if err != nil {
		return false, err
	}
	live.changeDurable(delta)
	g.forgetPages(id)
	return done, nil
}

// forgetPages drops a deleted volume's pages from memory. None of them is dirty: nothing was written since the
// tombstone, which the last checkpoint holds.
func (g *Group) forgetPages(id storage.VolumeID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.persists++
	for k, s := range g.slots {
		if k.volume == id && !s.pinned {
			delete(g.slots, k)
		}
	}
	g.noteCachedLocked()
}
