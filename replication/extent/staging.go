package extent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// maxPendingTables bounds the tables of a staging that wait for blocks.
	maxPendingTables = 64
	stagingPrefix    = "staging-"
)

// Staging is a manifest that is being pulled into a table set of its own. The replica is what it was until
// Group.Install. A staging does not outlive the process: what it leaves behind is discarded when the store is opened,
// so that a crash between Commit and Install leaves no trace. Its methods may be called concurrently.
type Staging struct {
	s      *Store
	key    segment.GroupKey
	header ManifestHeader
	set    tableSet

	mu        sync.Mutex // guards all below
	parts     map[int]bool
	volumes   map[storage.VolumeID]*volume
	known     map[tableID]bool // versions that were offered by Want; true: complete
	pending   map[tableID]*pendingTable
	end       segment.Position // of the last data appended
	sources   *source          // what the replica holds already; nil after the end
	committed bool
	ended     bool
	taken     bool // by an Install that goes on: it must not be aborted
}

type tableID struct {
	extentID
	epoch storage.Epoch
}

func (r ExtentRef) id() tableID { return tableID{extentID{r.Volume, r.Extent}, r.Epoch} }

// pendingTable is a version some of whose blocks have no place yet.
type pendingTable struct {
	table   *table
	missing blockSet
	shared  blockSet // those that have the place of an older version's
}

// source is the durable state of the replica that a staging began from; its segments are pinned.
type source struct {
	set      setID
	snapshot *pebble.Snapshot
	unpin    []func()
}

func (s *source) release() {
	_ = s.snapshot.Close() // its only error is to be closed already
	for _, f := range s.unpin {
		f()
	}
}

// Stage begins a pull into the replica of that key, which must exist. An earlier staging of it that was not installed
// is given up.
func (s *Store) Stage(key segment.GroupKey, header ManifestHeader) (*Staging, error) {
	g := s.Group(key)
	if g == nil {
		return nil, storage.E("stage", storage.KindNotFound, "group "+key.String(), nil)
	}
	s.abortStagings(key)
	st := &Staging{s: s, key: key, header: header, parts: map[int]bool{}, volumes: map[storage.VolumeID]*volume{},
		known: map[tableID]bool{}, pending: map[tableID]*pendingTable{}}
	s.mu.Lock() // held across the sync of the counter, as for a new group
	set, err := s.nextSetLocked()
	if err == nil {
		st.set = tableSet{set, newLiveCounts(counts{})}
		s.stagings[set] = st
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.addSet(st.set)
	if st.sources, err = g.keepDurable(); err != nil {
		st.Abort()
		return nil, err
	}
	return st, nil
}

// keepDurable keeps the durable tables of the group and their segments.
func (g *Group) keepDurable() (*source, error) {
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	set := g.set
	g.mu.RUnlock()
	snapshot, err := g.store.meta.snapshot()
	if err != nil {
		return nil, err
	}
	src := &source{set: set.id, snapshot: snapshot}
	for _, no := range set.live.durableSegments() {
		src.unpin = append(src.unpin, g.store.log.Pin(no))
	}
	return src, nil
}

func (s *Store) abortStagings(key segment.GroupKey) {
	s.mu.Lock()
	var old []*Staging
	for _, st := range s.stagings {
		if st.key == key {
			old = append(old, st)
		}
	}
	s.mu.Unlock()
	for _, st := range old {
		st.Abort()
	}
}

// ID names the staging for Install.
func (st *Staging) ID() string { return stagingPrefix + strconv.FormatUint(uint64(st.set.id), 10) }

func (st *Staging) openLocked(op string) error {
	if st.ended || st.committed {
		return storage.E(op, storage.KindConflict, st.ID(), errors.New("the staging has ended"))
	}
	return nil
}

// PutState stages one part of the small state.
func (st *Staging) PutState(i int, part []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.openLocked("stage state"); err != nil {
		return err
	}
	if i < 0 || i >= int(st.header.StateParts) {
		return invalid("stage state", "part %d of %d", i, st.header.StateParts)
	}
	err := decodeStatePart(part, func(id storage.VolumeID, v *volume) error {
		st.volumes[id] = v
		return nil
	})
	if err == nil {
		st.parts[i] = true
	}
	return err
}

// Want returns those of the extent versions that must be pulled. The others are here already with the same digest: in
// the durable tables of the replica, or from an earlier call.
func (st *Staging) Want(refs []ExtentRef) ([]ExtentRef, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.openLocked("stage"); err != nil {
		return nil, err
	}
	var want []ExtentRef
	for _, ref := range refs {
		if st.known[ref.id()] {
			continue
		}
		kept, err := st.keepLocked(ref)
		if err != nil {
			return nil, err
		}
		st.known[ref.id()] = kept
		if !kept {
			want = append(want, ref)
		}
	}
	return want, nil
}

// keepLocked copies the version from what the replica holds, if it has it. Only the table is copied. Beside the digest,
// which is of 32-bit sums, the index must be the same: both replicas have applied the same entries up to it, and none
// that changed the version since.
func (st *Staging) keepLocked(ref ExtentRef) (bool, error) {
	tables, err := st.s.meta.loadTables(st.sources.snapshot, st.sources.set, extentID{ref.Volume, ref.Extent})
	if err != nil {
		if errors.Is(err, storage.ErrCorrupt) {
			return false, nil // a damaged table is pulled anew
		}
		return false, err
	}
	for _, t := range tables {
		if have := t.ref(); t.epoch == ref.Epoch && have.Digest == ref.Digest && have.Index == ref.Index {
			st.countLocked(t, nil)
			return true, st.writeLocked(t)
		}
	}
	return false, nil
}

// PutTable stages the table of a wanted version, and returns the blocks that must be put. Older versions of the same
// extent must be complete. The error is of KindCorrupt if the table has not the digest that the manifest says.
func (st *Staging) PutTable(ref ExtentRef, data []byte) ([]BlockRun, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.openLocked("stage table"); err != nil {
		return nil, err
	}
	complete, known := st.known[ref.id()]
	switch {
	case !known:
		return nil, storage.E("stage table", storage.KindInvalid, ref.String(), errors.New("it was not asked for"))
	case complete:
		return nil, nil
	case st.pending[ref.id()] != nil:
		return runsOf(&st.pending[ref.id()].missing), nil
	case len(st.pending) >= maxPendingTables:
		return nil, storage.E("stage table", storage.KindUnavailable, ref.String(), errors.New("too many tables wait for their blocks"))
	}
	t, missing, shared, err := decodeTable(extentID{ref.Volume, ref.Extent}, ref.Epoch, data)
	if err != nil {
		return nil, err
	}
	mapped := missing
	for i := range mapped {
		mapped[i] |= shared[i]
	}
	if digestOf(t, &mapped) != ref.Digest {
		return nil, storage.E("stage table", storage.KindCorrupt, ref.String(), errors.New("it has another digest than the manifest says"))
	}
	if err := st.shareLocked(t, &shared); err != nil {
		return nil, err
	}
	p := &pendingTable{t, missing, shared}
	if missing.count() == 0 {
		return nil, st.completeLocked(ref, p)
	}
	st.pending[ref.id()] = p
	return runsOf(&missing), nil
}

// shareLocked takes the places of shared blocks from the older versions.
func (st *Staging) shareLocked(t *table, shared *blockSet) error {
	if shared.count() == 0 {
		return nil
	}
	older, err := st.s.meta.loadTables(st.s.meta.db, st.set.id, t.extentID)
	if err != nil {
		return err
	}
	for len(older) > 0 && older[len(older)-1].epoch >= t.epoch {
		older = older[:len(older)-1]
	}
	for i, p := range t.pages {
		for m := shared[i]; m != 0; m &= m - 1 {
			j := bits.TrailingZeros64(m)
			q := olderPage(older, i)
			if q == nil || !q.entries[j].mapped() || q.entries[j].crc != p.entries[j].crc {
				return storage.E("stage table", storage.KindConflict, t.ref().String(), fmt.Errorf("the older version that holds block %d is not here", i*blocksPerPage+j))
			}
			p.entries[j] = q.entries[j]
		}
	}
	return nil
}

// PutBlocks stages blocks of a version whose table was put: the payload holds its missing blocks from first on, whole
// and in order. Each is checked against its sum (KindCorrupt).
func (st *Staging) PutBlocks(ref ExtentRef, first int, payload []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.openLocked("stage blocks"); err != nil {
		return err
	}
	p := st.pending[ref.id()]
	n := len(payload) / storage.BlockSize
	if p == nil || first < 0 || len(payload)%storage.BlockSize != 0 || n < 1 || n > MaxBlocksPerRead {
		return storage.E("stage blocks", storage.KindInvalid, ref.String(), fmt.Errorf("%d bytes from block %d", len(payload), first))
	}
	places, err := p.verify(ref, first, payload)
	if err != nil {
		return err
	}
	// From before the blocks are in a segment until they are counted, none that may hold them is recycled.
	defer st.s.holdFrom(st.set.id)()
	payload = bytes.Clone(payload) // the log keeps it by reference
	for len(places) > 0 {
		k := min(len(places), st.s.blocksPerRecord())
		if err := st.appendLocked(ref, p, places[:k], payload[:k*storage.BlockSize]); err != nil {
			return err
		}
		places, payload = places[k:], payload[k*storage.BlockSize:]
	}
	if p.missing.count() > 0 {
		return nil
	}
	return st.completeLocked(ref, p)
}

// blocksPerRecord is how many blocks fit well into one record: all of a call, unless segments are very small.
func (s *Store) blocksPerRecord() int {
	return max(1, min(MaxBlocksPerRead, int(s.cfg.SegmentBytes/4/storage.BlockSize)))
}

// appendLocked puts blocks into the log and notes their places.
func (st *Staging) appendLocked(ref ExtentRef, p *pendingTable, places []int, payload []byte) error {
	data, end, err := st.s.log.AppendData(segment.DataHeader{Group: st.key.Group, Volume: ref.Volume, Extent: ref.Extent, Epoch: ref.Epoch,
		FirstBlock: uint16(places[0])}, payload)
	if err != nil {
		return err
	}
	st.end = max(st.end, end)
	for i, b := range places {
		e := &p.table.pages[b/blocksPerPage].entries[b%blocksPerPage]
		e.segment, e.offset = data.Segment(), data.Offset()+uint32(i)*storage.BlockSize
		p.missing[b/blocksPerPage] &^= 1 << (b % blocksPerPage)
	}
	st.set.live.change(counts{data.Segment(): int64(len(places))})
	return nil
}

// completeLocked writes a table all of whose blocks have a place. What was pulled is counted; shared blocks are not
// yet.
func (st *Staging) completeLocked(ref ExtentRef, p *pendingTable) error {
	st.countLocked(p.table, &p.shared)
	if err := st.writeLocked(p.table); err != nil {
		return err
	}
	delete(st.pending, ref.id())
	st.known[ref.id()] = true
	return nil
}

// countLocked counts the blocks of a table as live: those of the set, or all.
func (st *Staging) countLocked(t *table, which *blockSet) {
	live := counts{}
	for i, p := range t.pages {
		if p == nil {
			continue
		}
		for j := range p.entries {
			if e := &p.entries[j]; e.mapped() && (which == nil || which[i]&(1<<j) != 0) {
				live.bump(e.segment, 1)
			}
		}
	}
	st.set.live.change(live)
}

// writeLocked writes a table into the staging's set. Commit makes it durable.
func (st *Staging) writeLocked(t *table) error {
	return st.s.meta.commitNoSync(func(b *pebble.Batch) error {
		for i, p := range t.pages {
			if p == nil {
				continue
			}
			k := appendPageKey(nil, st.set.id, pageKey{t.volume, t.extent, uint8(i)}, t.epoch)
			if err := b.Set(k, p.appendValue(nil, k), nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// Commit makes the staging durable and ready for Install, under the id it returns. KindConflict if something is
// missing.
func (st *Staging) Commit(ctx context.Context) (id string, err error) {
	st.mu.Lock() // held across the sync: nothing may be staged meanwhile
	defer st.mu.Unlock()
	if err := st.openLocked("commit"); err != nil {
		return "", err
	}
	incomplete := 0
	for _, complete := range st.known {
		if !complete {
			incomplete++
		}
	}
	if incomplete > 0 || len(st.parts) != int(st.header.StateParts) {
		return "", storage.E("commit", storage.KindConflict, st.ID(), fmt.Errorf("%d tables and %d parts of the state are missing",
			incomplete, int(st.header.StateParts)-len(st.parts)))
	}
	// Guards I1 and I7: tables that are installed refer to durable blocks only.
	if err := st.s.log.Wait(ctx, st.end); err != nil {
		return "", err
	}
	st.set.live.freeze()
	err = st.s.meta.commit(func(b *pebble.Batch) error {
		for id, v := range st.volumes {
			k := volumeKey(keyVolume, st.set.id, id)
			if err := b.Set(k, v.appendValue(nil, k), nil); err != nil {
				return err
			}
		}
		return fillLive(b, st.set.id, st.set.live.next())
	})
	if err != nil {
		return "", err
	}
	st.set.live.persisted()
	st.committed = true
	st.releaseLocked()
	return st.ID(), nil
}

func (st *Staging) releaseLocked() {
	if st.sources != nil {
		st.sources.release()
		st.sources = nil
	}
}

// Abort gives the staging up, committed or not, and frees what it holds. It does nothing after Install.
func (st *Staging) Abort() {
	st.mu.Lock()
	if st.taken {
		st.mu.Unlock()
		return
	}
	st.ended = true
	st.mu.Unlock()
	if !st.finish() {
		return
	}
	// Not durable: what a power cut brings back is discarded when the store is opened.
	err := st.s.meta.commitNoSync(func(b *pebble.Batch) error { return dropSet(b, st.set.id) })
	if err != nil {
		st.s.logger.Warn("staged tables not removed", "staging", st.ID(), "err", err)
		return // they stay counted: their segments are not recycled
	}
	st.s.dropSet(st.set.id)
	st.s.recycle()
}

// take keeps the staging for an Install; false if it was given up meanwhile.
func (st *Staging) take() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	ok := st.committed && !st.ended && !st.taken
	st.taken = st.taken || ok
	return ok
}

// untake follows an Install that came to nothing.
func (st *Staging) untake() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.taken = false
}

// GiveUp aborts the committed staging of that id, unless it was installed or given up before.
func (s *Store) GiveUp(id string, key segment.GroupKey) {
	if st := s.committedStaging(id, key); st != nil {
		st.Abort()
	}
}

// finish takes the staging off the store's list; false if it was off already.
func (st *Staging) finish() bool {
	st.s.mu.Lock()
	_, listed := st.s.stagings[st.set.id]
	delete(st.s.stagings, st.set.id)
	st.s.mu.Unlock()
	if !listed {
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.ended = true
	st.releaseLocked()
	return true
}

// Install makes the replica what the committed staging holds, in one synced batch, and empties its log. It is called
// by the goroutine that applies. Everything the replica had is gone, checkpoints that are being written included.
// KindNotFound if there is no committed staging of that id for this replica, KindConflict if the replica has all that the
// staging holds already.
func (g *Group) Install(id string) error {
	st := g.store.committedStaging(id, g.key)
	if st == nil || !st.take() {
		return storage.E("install", storage.KindNotFound, "group "+g.key.String(), fmt.Errorf("no committed manifest %q", id))
	}
	if err := g.mayInstall(&st.header); err != nil {
		st.untake()
		return err
	}
	if err := g.install(st); err != nil {
		st.untake()
		return storage.E("install", storage.KindOf(err), "group "+g.key.String(), err)
	}
	st.finish()
	if err := g.log.Reset(st.header.Index, st.header.Term); err != nil {
		return storage.E("install", storage.KindOf(err), "group "+g.key.String(), err)
	}
	g.store.wakePurge()
	g.store.recycle()
	return nil
}

// mayInstall refuses a manifest that agrees with the replica's log, or lies below what it has applied. Guards I7: what
// follows it in the log was acknowledged, and counts towards what is committed; an install would empty the log.
func (g *Group) mayInstall(h *ManifestHeader) error {
	applied, _ := g.Applied()
	_, agrees := g.log.EndOf(h.Index, h.Term)
	if h.Index > applied && !agrees || applied == 0 && g.log.LastIndex() == 0 {
		return nil
	}
	return storage.E("install", storage.KindConflict, "group "+g.key.String(), fmt.Errorf(
		"the manifest is of entry %d; the replica has it, and has applied %d", h.Index, applied))
}

func (s *Store) committedStaging(id string, key segment.GroupKey) *Staging {
	n, err := strconv.ParseUint(strings.TrimPrefix(id, stagingPrefix), 10, 64)
	if err != nil || !strings.HasPrefix(id, stagingPrefix) {
		return nil
	}
	s.mu.Lock()
	st := s.stagings[setID(n)]
	s.mu.Unlock()
	if st == nil || st.key != key {
		return nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.committed || st.ended {
		return nil
	}
	return st
}

// install swaps the group's table set. Guards I7 and I8: one batch makes the group name the new set, with its applied
// index and configuration; before it nothing has changed, after it everything has.
func (g *Group) install(st *Staging) error {
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	h := &st.header
	record := groupRecord{set: st.set.id, from: g.log.NextNeeded(h.Index), Checkpoint: h.Checkpoint}
	g.mu.RLock()
	old := g.set
	g.mu.RUnlock()
	err := g.store.meta.commit(func(b *pebble.Batch) error {
		k := groupKeyBytes(keyGroup, g.key)
		return errors.Join(b.Set(k, record.appendValue(nil, k), nil), dropSet(b, old.id))
	})
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set, g.record = st.set, record
	g.applied, g.term = h.Index, h.Term
	g.volumes = st.volumes
	g.slots, g.pinned, g.pinnedExtents = map[pageKey]*slot{}, 0, map[extentID]int{}
	g.freezes++
	g.dirty, g.dirtyVolumes, g.purgeDue = map[versionKey]*page{}, map[storage.VolumeID]struct{}{}, map[storage.VolumeID]struct{}{}
	g.frozen = nil
	g.store.unsaved.drop(&g.unsaved)
	g.persists++
	clear(g.delta)
	g.forgetShares()
	g.wanted.Store(false)
	g.dueAnnounced = false
	g.store.dropSet(old.id)
	return nil
}

// verify finds the missing blocks that the payload holds, and checks them.
func (p *pendingTable) verify(ref ExtentRef, first int, payload []byte) (places []int, err error) {
	for b := first; b < storage.BlocksPerExtent && len(payload) > 0; b++ {
		if p.missing[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		if op.Sum(payload[:storage.BlockSize]) != p.table.at(b).crc { // guards I5: damage is not taken over
			return nil, storage.E("stage blocks", storage.KindCorrupt, ref.String(), fmt.Errorf("checksum mismatch in block %d", b))
		}
		places, payload = append(places, b), payload[storage.BlockSize:]
	}
	if len(payload) > 0 {
		return nil, invalid("stage blocks", "%s: %d blocks more than are missing", ref, len(payload)/storage.BlockSize)
	}
	return places, nil
}
