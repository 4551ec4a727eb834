package extent

import (
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

const maxUint64 = uint64(math.MaxUint64)

const (
	groupVersion  = 1
	groupFixedLen = 1 + 5*8 + 4
	// MaxConfigBytes bounds the configuration that a checkpoint keeps.
	MaxConfigBytes = 1 << 20
)

// Checkpoint is what is durable of a group beside its tables.
type Checkpoint struct {
	// Index and Term are of the last entry it holds; 0 for a new replica.
	Index, Term uint64
	// ConfigIndex and Config are the group's configuration at Index; opaque here.
	ConfigIndex uint64
	Config      []byte
}

// groupRecord is what Pebble holds under keyGroup.
type groupRecord struct {
	set  setID
	from segment.Position // see segment.GroupStart.From
	Checkpoint
}

func (r *groupRecord) appendValue(dst, key []byte) []byte {
	base := len(dst)
	le := binary.LittleEndian
	dst = append(dst, groupVersion)
	for _, n := range []uint64{uint64(r.set), uint64(r.from), r.Index, r.Term, r.ConfigIndex} {
		dst = le.AppendUint64(dst, n)
	}
	dst = le.AppendUint32(dst, uint32(len(r.Config)))
	dst = append(dst, r.Config...)
	return append(dst[:base], seal(key, dst[base:])...)
}

func decodeGroupRecord(key, value []byte) (r groupRecord, err error) {
	body, err := unseal(key, value)
	if err != nil {
		return groupRecord{}, corrupt("decode group", "%w", err)
	}
	if len(body) < groupFixedLen || body[0] != groupVersion {
		return groupRecord{}, corrupt("decode group", "%d bytes with an unknown beginning", len(body))
	}
	le := binary.LittleEndian
	n := le.Uint32(body[41:])
	if n > MaxConfigBytes || len(body) != groupFixedLen+int(n) {
		return groupRecord{}, corrupt("decode group", "%d bytes for a configuration of %d", len(body), n)
	}
	r = groupRecord{set: setID(le.Uint64(body[1:])), from: segment.Position(le.Uint64(body[9:])),
		Checkpoint: Checkpoint{Index: le.Uint64(body[17:]), Term: le.Uint64(body[25:]), ConfigIndex: le.Uint64(body[33:])}}
	if n > 0 {
		r.Config = append([]byte(nil), body[groupFixedLen:]...)
	}
	return r, nil
}

// tableSet is a set of tables and what it refers to.
type tableSet struct {
	id   setID
	live *liveCounts
}

// Group is one replica of a group: its small state, and the tables of its extents.
type Group struct {
	store *Store
	key   segment.GroupKey
	log   *segment.GroupLog

	// commitMu is held by whoever changes what Pebble holds of the group: Persist, purges, installs. It is taken
	// before mu, and held across the sync of the batch because only then memory may follow.
	commitMu sync.Mutex

	// mu guards all below. It is never held across I/O.
	mu            sync.RWMutex
	set           tableSet
	record        groupRecord // what Pebble holds; changed under commitMu as well
	applied, term uint64      // of the last entry applied; record.Index <= applied
	volumes       map[storage.VolumeID]*volume
	slots         map[pageKey]*slot
	pinned        int // slots that are pinned
	// pinnedExtents counts them by extent; the sum is pinned.
	pinnedExtents map[extentID]int
	// freezes counts up from 1 at every Freeze. Pages changed since have it as their dirtySince.
	freezes      uint64
	dirty        map[versionKey]*page          // changed since the last Freeze
	dirtyVolumes map[storage.VolumeID]struct{} // changed since, or forgotten
	purgeDue     map[storage.VolumeID]struct{} // deleted since: the next checkpoint says that their tables are to be removed
	frozen       *Frozen                       // between Freeze and Release
	persists     uint64                        // counts what changes the tables in Pebble
	removed      bool
	damage       *storage.Error // why nothing is applied any more; nil: it is. Set by the goroutine that applies

	// Since the last Freeze: bytes of log applied, pages changed; and the slots that are not pinned. They change by way of
	// the store's budgets.
	sinceFreeze, dirtyPages, cached atomic.Int64
	// unsaved is the number of pages in memory that Pebble does not hold; changed by way of store.unsaved.
	unsaved atomic.Int64
	// wanted: a checkpoint was asked for, though little was written since the last Freeze.
	wanted  atomic.Bool
	askedAt atomic.Uint32 // segment of the log when a checkpoint was last asked for to move the recovery position

	// Owned by runReclaim: since when the group was seen with changes, and after how many freezes.
	changedAt      time.Time
	changedFreezes uint64

	// Owned by the goroutine that applies.
	delta        counts // changes of live counts that were not handed on yet
	dueAnnounced bool
}

func newGroup(s *Store, key segment.GroupKey, log *segment.GroupLog, set tableSet, record groupRecord) *Group {
	return &Group{store: s, key: key, log: log, set: set, record: record, applied: record.Index, term: record.Term,
		volumes: map[storage.VolumeID]*volume{}, slots: map[pageKey]*slot{}, pinnedExtents: map[extentID]int{}, freezes: 1,
		dirty: map[versionKey]*page{}, dirtyVolumes: map[storage.VolumeID]struct{}{},
		purgeDue: map[storage.VolumeID]struct{}{}, delta: counts{}}
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
func (g *Group) Checkpointed() Checkpoint {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.record.Checkpoint
}

// Volume returns what the group knows of a volume; false if it was never mentioned.
func (g *Group) Volume(id storage.VolumeID) (VolumeState, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	v := g.volumes[id]
	if v == nil {
		return VolumeState{}, false
	}
	return v.state(), true
}

// MappedBlocks returns how many blocks of each volume the group maps; -1 where that is not known, 0 for a volume that was
// never mentioned.
func (g *Group) MappedBlocks(ids []storage.VolumeID) []int64 {
	out := make([]int64, len(ids))
	g.mu.RLock()
	defer g.mu.RUnlock()
	for i, id := range ids {
		if v := g.volumes[id]; v != nil {
			out[i] = v.mapped
		}
	}
	return out
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
	v := g.volumes[id]
	if v == nil {
		if session != 0 {
			v = newVolume() // no session is open
		} else {
			return nil
		}
	}
	return v.checkRead(id, session, generation)
}

// forgetShares takes the group's part out of what the groups of the store share.
func (g *Group) forgetShares() {
	g.store.written.drop(&g.sinceFreeze)
	g.store.changed.drop(&g.dirtyPages)
	g.store.cached.drop(&g.cached)
}
