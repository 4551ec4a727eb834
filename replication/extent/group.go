package extent

import (
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// tableSet is a set of tables and what it refers to.
type tableSet struct {
	id   table.SetID
	live *live.Set
}

// Group is one replica of a group: its small state, and the tables of its extents.
type Group struct {
	store *Store
	key   segment.GroupKey
	log   *segment.GroupLog

	// commitMu is held by whoever changes what Pebble holds of the group: Persist, purges, installs. It is taken
	// before mu, and held across the sync of the batch because only then memory may follow.
	commitMu turn

	// applying is held by Apply, from when it asks where entries lie until the live counts know of it, and by whoever has the log
	// lay them elsewhere. It is taken before mu, and not under it.
	applying sync.Mutex
	copies   *segment.Copies // of entries, on their way; guarded by commitMu

	// mu guards all below. It is never held across I/O.
	mu            sync.RWMutex
	set           tableSet
	record        table.GroupRecord             // what Pebble holds; changed under commitMu as well
	applied, term uint64                        // of the last entry applied; record.Index <= applied
	state         table.State                   // of the volumes
	cache         cache                         // of the tables
	purgeDue      map[storage.VolumeID]struct{} // deleted since: the next checkpoint says that their tables are to be removed
	frozen        *Frozen                       // between Freeze and Release
	removed       bool
	movedAt       time.Time      // since when there are moved blocks that no freeze took
	digests       []digested     // what the last Digests found, at most maxDigests
	damage        *storage.Error // why nothing is applied any more; nil: it is. Set by the goroutine that applies

	sinceFreeze atomic.Int64 // bytes of log applied since the last Freeze; changed by way of store.written
	// wanted: a checkpoint was asked for, though little was written since the last Freeze.
	wanted atomic.Bool

	// Owned by the goroutine that applies.
	dueAnnounced bool
}

func newGroup(s *Store, key segment.GroupKey, log *segment.GroupLog, set tableSet, record table.GroupRecord) *Group {
	g := &Group{store: s, key: key, log: log, commitMu: newTurn(), set: set, record: record, applied: record.Index, term: record.Term,
		state: table.NewState(), purgeDue: map[storage.VolumeID]struct{}{}}
	g.cache.init(s)
	return g
}

// Key returns the group and incarnation.
func (g *Group) Key() segment.GroupKey { return g.key }

// Log returns the replica's log.
func (g *Group) Log() *segment.GroupLog { return g.log }

// Applied returns the index and term of the last entry that was applied.
func (g *Group) Applied() (index, term uint64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.applied, g.term
}

// Checkpointed returns what the durable checkpoint holds.
func (g *Group) Checkpointed() table.Checkpoint {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.record.Checkpoint
}

// Volume returns what the group knows of a volume; false if it was never mentioned.
func (g *Group) Volume(id storage.VolumeID) (table.VolumeState, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	v := g.state.Volume(id)
	if v == nil {
		return table.VolumeState{}, false
	}
	return v.State(), true
}

// MappedBlocks returns how many blocks of each volume the group maps; -1 where that is not known, 0 for a volume that was
// never mentioned.
func (g *Group) MappedBlocks(ids []storage.VolumeID) []int64 {
	out := make([]int64, len(ids))
	g.mu.RLock()
	defer g.mu.RUnlock()
	for i, id := range ids {
		if v := g.state.Volume(id); v != nil {
			out[i] = v.Mapped()
		}
	}
	return out
}

// LiveBytes returns how many bytes of blocks live in the group, those of deleted volumes that are not purged yet included. What versions
// share counts once, but for pages of format 1.
func (g *Group) LiveBytes() int64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.set.live.Bytes()
}

// CheckRead returns nil unless the request must be refused: KindFenced for a session that is not open or a generation
// that is over, KindNotFound for a deleted volume.
func (g *Group) CheckRead(r op.ReadRequest) error {
	return g.checkRead(r.Volume, r.Session, r.Generation)
}

func (g *Group) checkRead(id storage.VolumeID, session storage.SessionID, generation storage.Generation) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.removed {
		return storage.E("read", storage.KindNotFound, "group "+g.key.String(), nil)
	}
	if g.damage != nil {
		return storage.E("read", storage.KindUnavailable, "group "+g.key.String(), g.damage)
	}
	return g.state.CheckRead(id, session, generation)
}

// RequestCheckpoint asks for a checkpoint of the group soon, however little was written since the last one.
func (g *Group) RequestCheckpoint() {
	g.wanted.Store(true)
	g.store.cfg.OnCheckpointDue(g.key)
}
