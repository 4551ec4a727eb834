package extent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// stagedFor is how long what a broken pull has brought is kept for the next one.
	stagedFor = 7 * 24 * time.Hour
	// maxStaged bounds the sets that are kept for a replica: what each has brought beyond the others is less and less.
	maxStaged = 3
	// keepPatience bounds the wait for the log when a pull breaks. What is not durable then is moved again.
	keepPatience = 10 * time.Second
)

// staged is what broken pulls have brought of a replica's group, up to a commit point: a table set that no replica has. It is named in
// the database (table.KeyStaged) and outlives the process. Nobody changes it: compaction leaves its blocks alone. The next pull of the
// replica shares from it. It goes when that pull is complete, with the replica, when the replica has got further by its log, after
// stagedFor, and before any client is refused for want of room.
type staged struct {
	key    segment.GroupKey
	set    tableSet
	record table.Staged
	users  int // pulls that share from it; guarded by Store.mu
}

// Staged returns how many bytes of blocks are kept of pulls that broke. What several of them share counts several times.
func (s *Store) Staged() (bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.staged {
		bytes += k.set.live.Bytes()
	}
	return bytes
}

// loadStaged reads what pulls have left. void are the keys that name nothing which is to be kept: of replicas that are gone, of a set
// that a replica has, or damaged. Their sets are found as orphans.
func (s *Store) loadStaged(owned map[table.SetID]bool) (void [][]byte, err error) {
	from := []byte{table.KeyStaged}
	err = s.db.Scan(from, table.AfterPrefix(from), func(k, v []byte) (bool, error) {
		key, set, record, err := table.DecodeStaged(k, v)
		if err == nil && s.groups[key] != nil && !owned[set] {
			s.staged[set] = &staged{key: key, set: tableSet{id: set}, record: record}
			owned[set] = true
			return true, nil
		}
		if err != nil {
			s.logger.Warn("what a pull had brought is given up", "error", err)
		}
		void = append(void, slices.Clone(k))
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for id, k := range s.staged {
		counts, err := tableset.Live(s.db, id)
		if errors.Is(err, storage.ErrCorrupt) {
			s.logger.Warn("what a pull had brought is given up", "group", k.key, "error", err)
			void = append(void, table.StagedKey(k.key, id))
			delete(s.staged, id)
			delete(owned, id)
			continue
		}
		if err != nil {
			return nil, err
		}
		k.set.live = live.NewSet(counts)
		s.live.Add(id, k.set.live)
	}
	return void, nil
}

// adopt lists a staging, and what earlier pulls have left for it, the newest first; false if its replica is gone by now. Then nobody would
// end it.
func (s *Store) adopt(st *Staging) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups[st.key] != st.g {
		return false
	}
	s.stagings[st.set.id] = st
	for _, k := range s.staged {
		if k.key == st.key {
			k.users++
			st.sources = append(st.sources, k)
		}
	}
	st.adopted = len(st.sources) > 0
	slices.SortFunc(st.sources, func(a, b *staged) int { return cmp.Compare(b.set.id, a.set.id) })
	return true
}

// claimSources takes those sources of a staging off the store's list that no other pull shares from: its Commit drops them. They may be
// listed again.
//
// Guards I1: another pull that shares from one reads its tables, and counts what it takes, later.
func (s *Store) claimSources(st *Staging) (claimed []*staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range st.sources {
		if k.users == 1 && s.staged[k.set.id] == k {
			claimed = append(claimed, k)
		}
	}
	s.unlistLocked(claimed)
	return claimed
}

// listAgain follows a claim, or a removal, that came to nothing.
func (s *Store) listAgain(sets []*staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range sets {
		s.staged[k.set.id] = k
	}
}

// dismissSources ends the use of a staging's sources. What others share from goes with the last of them (stagedDue).
func (s *Store) dismissSources(st *Staging) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.dismissLocked()
}

// dismissLocked is dismissSources with Store.mu held.
func (st *Staging) dismissLocked() {
	for _, k := range st.sources {
		k.users--
	}
	st.sources = nil
}

// addPartsLocked adds the pages that are complete of versions that are not. Nothing follows them here: the next pull takes them page by
// page.
func (st *Staging) addPartsLocked() {
	for id, p := range st.pending {
		part := table.Version{VersionID: id}
		for i, page := range p.table.Pages {
			if page != nil && p.missing[i] == 0 {
				part.Pages[i] = page
			}
		}
		st.addLocked(&part, p.older)
	}
}

// Keep ends the staging, and keeps for the next pull of the replica what is complete of it, if it has anything that is not kept anyway.
// It does nothing after Install and Abort.
func (st *Staging) Keep() {
	st.mu.Lock()
	if st.taken || st.ended {
		st.mu.Unlock()
		return
	}
	if st.moved > 0 && !st.committed {
		st.addPartsLocked()
		// The pull's own ctx is done, mostly: that is why it has broken.
		ctx, cancel := context.WithTimeout(context.Background(), keepPatience)
		if err := st.saveLocked(ctx, nil); err != nil {
			st.s.logger.Info("the last of what a pull has brought is not kept", "group", st.key, "error", err)
		}
		cancel()
	}
	keep := st.saved && (st.moved > 0 || st.committed && st.adopted) // a commit has dropped the sources
	st.ended = st.ended || keep
	k := &staged{key: st.key, set: tableSet{st.set.id, live.NewSet(st.set.live.Durable())}, record: st.record}
	st.mu.Unlock()
	if !keep {
		st.Abort()
		return
	}
	if !st.finish(k) {
		return
	}
	st.s.dropBeyond(st.key, maxStaged)
	st.s.worker.Recycle()
}

// GiveUp keeps the committed staging of that id for the next pull, unless it was installed or given up before.
func (s *Store) GiveUp(id string, key segment.GroupKey) {
	if st := s.committedStaging(id, key); st != nil {
		st.Keep()
	}
}

// dropBeyond drops those of a replica's staged sets that have the fewest blocks.
func (s *Store) dropBeyond(key segment.GroupKey, limit int) {
	s.mu.Lock()
	var all []*staged
	for _, k := range s.staged {
		if k.key == key {
			all = append(all, k)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *staged) int { return cmp.Compare(b.set.live.Bytes(), a.set.live.Bytes()) })
	if len(all) > limit {
		if _, err := s.dropStaged(all[limit:]...); err != nil {
			s.logger.Warn("what a broken pull had brought is not removed", "group", key, "error", err)
		}
	}
}

// dropStaged drops those of the sets that no pull shares from.
func (s *Store) dropStaged(sets ...*staged) (dropped bool, err error) {
	s.mu.Lock()
	sets = slices.DeleteFunc(slices.Clone(sets), func(k *staged) bool { return k.users > 0 || s.staged[k.set.id] != k })
	s.unlistLocked(sets)
	s.mu.Unlock()
	if len(sets) == 0 {
		return false, nil
	}
	if err := s.removeSets(sets); err != nil {
		s.listAgain(sets)
		return false, err
	}
	return true, nil
}

// removeSets removes sets that are on no list any more. After an error they stay counted: their segments are not used again.
//
// Guards I1: the database is synced before the counts go. A set that came back after a power cut would refer to segments that are used
// again, and the next pull would share from it.
func (s *Store) removeSets(sets []*staged) error {
	err := s.db.Commit(func(b *tabledb.Batch) { fillDropStaged(b, sets) })
	if err == nil {
		s.uncount(sets)
	}
	return err
}

func fillDropStaged(b *tabledb.Batch, sets []*staged) {
	for _, k := range sets {
		tableset.DropStaged(b, k.key, k.set.id)
	}
}

// unlistLocked takes sets off the store's list. mu is held.
func (s *Store) unlistLocked(sets []*staged) {
	for _, k := range sets {
		delete(s.staged, k.set.id)
	}
}

// uncount forgets sets that are gone, durably.
func (s *Store) uncount(sets []*staged) {
	for _, k := range sets {
		s.live.Drop(k.set.id)
	}
}

// stagedOf returns what is kept for a replica.
func (s *Store) stagedOf(key segment.GroupKey) (sets []*staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.staged {
		if k.key == key {
			sets = append(sets, k)
		}
	}
	return sets
}

// idleStaged returns what no pull shares from, the oldest first.
func (s *Store) idleStaged() (sets []*staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.staged {
		if k.users == 0 {
			sets = append(sets, k)
		}
	}
	slices.SortFunc(sets, func(a, b *staged) int { return cmp.Compare(a.set.id, b.set.id) })
	return sets
}

// stagedDue returns which staged sets are to be dropped now; the oldest, when there is no room for clients. Guards I6.
func (s *Store) stagedDue() (due []*staged) {
	idle := s.idleStaged()
	for _, k := range idle {
		g := s.Group(k.key)
		if g == nil || time.Since(time.Unix(int64(k.record.AtSeconds), 0)) >= stagedFor {
			due = append(due, k)
		} else if applied, _ := g.Applied(); applied >= k.record.Index {
			due = append(due, k)
		}
	}
	// What several sets share counts several times as living. So they go, too, when what lives seems to take all.
	if space := s.room.Space(); len(due) == 0 && len(idle) > 0 && (space.Full() || space.Exhausted) {
		due = idle[:1]
	}
	return due
}
