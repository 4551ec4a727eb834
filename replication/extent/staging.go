package extent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/sched"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// maxPendingTables bounds the tables of a staging that wait for blocks.
	maxPendingTables = 64
	stagingPrefix    = "staging-"
)

// Staging is a manifest that is being pulled into a table set of its own. The replica is what it was until
// Group.Install. A staging does not outlive the process, nor a break of the pull; what it had at its last commit point does (staged).
// After a crash between Commit and Install that is all which is left. Its methods may be called concurrently.
//
// Between commit points, versions that are complete are in memory only. At one, the log is durable first, and then they, their counts
// and the name of the set are written in one synced batch. There is one for each Config.SegmentBytes of blocks, or maxUnsavedPages.
type Staging struct {
	s      *Store
	g      *Group
	key    segment.GroupKey
	header table.ManifestHeader
	set    tableSet
	// makesRoom: the manifest holds less than the replica has, which is freed by an Install.
	makesRoom bool
	sources   []*staged // what earlier pulls have left; none after the end. Changed under Store.mu

	mu        turn // guards all below; held across commit points
	parts     map[int]bool
	state     table.State
	known     map[table.VersionID]bool           // versions that were offered by Want; true: complete
	last      table.Ref                          // that was offered
	open      map[table.ExtentID][]storage.Epoch // versions of an extent that are not complete, ascending
	pending   map[table.VersionID]*pendingTable
	end       segment.Position // of the last data appended
	moved     int64            // blocks that were put
	adopted   bool             // there were sources: what is kept of it may be all that is left of them
	unsaved   unsaved
	saved     bool         // there was a commit point: the database knows the set
	record    table.Staged // as of the last commit point
	committed bool
	ended     bool
	taken     bool // an Install is under way: it must not be aborted
}

// maxUnsavedPages bounds the pages that a staging has in memory: 4 MiB of them.
const maxUnsavedPages = 4096

// unsaved is what no commit point of a staging holds yet: versions that are complete.
type unsaved struct {
	pages  map[table.PageKey][]*table.Page // whole
	n      int                             // of them
	counts table.Counts                    // what they store
	blocks int64                           // moved since
}

// newest returns the newest version of a page below an epoch, or nil.
func (u *unsaved) newest(k table.PageKey, below storage.Epoch) (p *table.Page) {
	for _, q := range u.pages[k] {
		if q.Epoch < below && (p == nil || q.Epoch > p.Epoch) {
			p = q
		}
	}
	return p
}

// pendingTable is a version some of whose blocks have no place yet.
type pendingTable struct {
	table   *table.Version
	older   *table.Version // as of the epoch before, complete
	missing table.BlockSet
	counted table.Counts // blocks that have got a place
}

// Stage begins a pull into the replica of that key, which must exist (else KindNotFound). An earlier staging of it that was not installed ends (Keep), and
// what earlier pulls have left is shared from. KindNoSpace when the store is full up to its reserve, unless the manifest holds less
// than the replica has.
func (s *Store) Stage(key segment.GroupKey, header table.ManifestHeader) (*Staging, error) {
	g := s.Group(key)
	if g == nil {
		return nil, storage.E("stage", storage.KindNotFound, "group "+key.String(), nil)
	}
	for _, old := range s.stagingsOf(key) {
		old.Keep()
	}
	g.mu.RLock()
	// Only the pull frees what was discarded and deleted while the replica was away. So it may begin below the reserve.
	makesRoom := header.TotalBytes < g.set.live.DurableBytes()
	g.mu.RUnlock()
	err := s.room.MayGrow("stage")
	if err == nil && !makesRoom {
		err = s.room.MayTake("stage", 0, false)
	}
	if err != nil {
		return nil, err
	}
	st := &Staging{s: s, g: g, mu: newTurn(), key: key, header: header, makesRoom: makesRoom, parts: map[int]bool{}, state: table.NewState(),
		known: map[table.VersionID]bool{}, open: map[table.ExtentID][]storage.Epoch{}, pending: map[table.VersionID]*pendingTable{}}
	st.unsaved.reset()
	s.making.Lock()
	set, err := s.nextSet()
	s.making.Unlock()
	if err != nil {
		return nil, err
	}
	st.set = tableSet{set, live.NewSet(table.Counts{})}
	s.live.Add(set, st.set.live)
	if !s.adopt(st) {
		s.live.Drop(set)
		return nil, storage.E("stage", storage.KindNotFound, "group "+key.String(), errors.New("it was removed meanwhile"))
	}
	return st, nil
}

// Pulls returns how many stagings there are: begun, and neither installed nor given up.
func (s *Store) Pulls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.stagings)
}

// stagingsOf returns the stagings of a replica; there is one at most, but for moments.
func (s *Store) stagingsOf(key segment.GroupKey) (all []*Staging) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stagings {
		if st.key == key {
			all = append(all, st)
		}
	}
	return all
}

func (s *Store) abortStagings(key segment.GroupKey) {
	for _, st := range s.stagingsOf(key) {
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
		return storage.E("stage state", storage.KindInvalid, st.ID(), fmt.Errorf("part %d of %d", i, st.header.StateParts))
	}
	err := table.DecodeStatePart(part, func(id storage.VolumeID, v *table.Volume) error {
		st.state.Put(id, v)
		return nil
	})
	if err == nil {
		st.parts[i] = true
	}
	return err
}

// Want returns those of the extent versions that must be pulled. The others are here already with the same digest: in
// the durable tables of the replica, from an earlier pull, or from an earlier call. Versions are offered in ascending order, or again.
// ctx bounds the commit point that may be due; after KindNoSpace and KindCanceled the call may be repeated.
func (st *Staging) Want(ctx context.Context, refs []table.Ref) ([]table.Ref, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.openLocked("stage"); err != nil {
		return nil, err
	}
	var want []table.Ref
	for _, ref := range refs {
		kept, known := st.known[ref.ID()]
		if !known {
			// What follows a version has been put together with what was before it: nothing comes between.
			if !ref.After(st.last) {
				return nil, storage.E("stage", storage.KindInvalid, ref.String(), errors.New("it is offered after later ones"))
			}
			var err error
			if kept, err = st.keepLocked(ref); err != nil {
				return nil, err
			}
			st.known[ref.ID()], st.last = kept, ref
			if !kept {
				st.open[ref.ID().ExtentID] = append(st.open[ref.ID().ExtentID], ref.Epoch)
			}
		}
		if !kept {
			want = append(want, ref)
		}
		if err := st.saveIfDueLocked(ctx); err != nil {
			return nil, err
		}
	}
	return want, nil
}

// keepLocked copies the version from what is here, if it is. Only the table is copied. Beside the digest,
// which is of 32-bit sums, the index must be the same: both replicas have applied the same entries up to it, and none
// that changed the version since.
func (st *Staging) keepLocked(ref table.Ref) (kept bool, err error) {
	err = st.eachSource(ref.ID(), func(t *table.Version) (done bool, err error) {
		if t.Empty() || t.Ref() != ref {
			return false, nil
		}
		older := &table.Version{} // while an older version is still to come, this one stands for itself
		if len(st.open[t.ExtentID]) == 0 {
			if older, err = st.olderLocked(t.VersionID); err != nil {
				return true, err
			}
		}
		kept = true
		return true, st.storeLocked(t, older, nil)
	})
	return kept, err
}

// eachSource calls fn with the version as the replica's durable tables have it, and as earlier pulls have left it, until fn is done. What
// is damaged there is left out: it is pulled anew. Each version is fn's.
//
// The replica's own come first. Blocks that the disk did not give back were written anew there, and there only: what is kept still refers to
// the bad places.
//
// Guards I1: what fn takes of a version it counts before it returns. Until then no checkpoint is written of the replica, so the segments
// stay in use that its durable tables refer to; and nobody drops what an earlier pull has left.
func (st *Staging) eachSource(id table.VersionID, fn func(*table.Version) (done bool, err error)) error {
	look := func(set table.SetID) (done bool, err error) {
		t, err := tableset.Version(st.s.db, set, id)
		if errors.Is(err, storage.ErrCorrupt) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		return fn(t)
	}
	if done, err := st.ownSource(look); done || err != nil {
		return err
	}
	for _, k := range st.sources {
		if done, err := look(k.set.id); done || err != nil {
			return err
		}
	}
	return nil
}

// ownSource looks at the durable tables of the replica, if there are any.
func (st *Staging) ownSource(look func(table.SetID) (done bool, err error)) (done bool, err error) {
	st.g.commitMu.Lock()
	defer st.g.commitMu.Unlock()
	st.g.mu.RLock()
	set, empty := st.g.set.id, st.g.record.Index == 0 || st.g.removed
	st.g.mu.RUnlock()
	if empty {
		return false, nil
	}
	return look(set)
}

// olderLocked returns an extent's table as it is here below the version.
func (st *Staging) olderLocked(id table.VersionID) (*table.Version, error) {
	older := &table.Version{}
	if st.saved {
		var err error
		if older, err = tableset.Older(st.s.db, st.set.id, id); err != nil {
			return nil, err
		}
	}
	for i := range older.Pages {
		p := st.unsaved.newest(table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: uint8(i)}, id.Epoch)
		if p != nil && (older.Pages[i] == nil || p.Epoch > older.Pages[i].Epoch) {
			older.Pages[i] = p
		}
	}
	return older, nil
}

// PutTable stages the table of a wanted version, and returns the blocks that must be put: those of pages that are not here. Older
// versions of the same extent must be complete. The error is of KindCorrupt if the table has not the digest that the manifest says. ctx is
// as that of Want.
func (st *Staging) PutTable(ctx context.Context, ref table.Ref, data []byte) ([]table.BlockRun, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.openLocked("stage table"); err != nil {
		return nil, err
	}
	complete, known := st.known[ref.ID()]
	switch {
	case !known:
		return nil, storage.E("stage table", storage.KindInvalid, ref.String(), errors.New("it was not asked for"))
	case complete:
		return nil, nil
	case st.open[ref.ID().ExtentID][0] != ref.Epoch:
		return nil, storage.E("stage table", storage.KindConflict, ref.String(), errors.New("an older version is not complete"))
	case st.pending[ref.ID()] != nil:
		return st.missingLocked(ctx, ref)
	case len(st.pending) >= maxPendingTables:
		return nil, storage.E("stage table", storage.KindUnavailable, ref.String(), errors.New("too many tables wait for their blocks"))
	}
	t, missing, shared, err := table.DecodeVersion(ref.ID(), data)
	if err != nil {
		return nil, err
	}
	mapped := missing
	for i := range mapped {
		mapped[i] |= shared[i]
	}
	if t.DigestWith(&mapped) != ref.Digest {
		return nil, storage.E("stage table", storage.KindCorrupt, ref.String(), errors.New("it has another digest than the manifest says"))
	}
	older, err := st.olderLocked(t.VersionID)
	if err != nil {
		return nil, err
	}
	if err := share(t, older, &shared); err != nil {
		return nil, err
	}
	p := &pendingTable{t, older, missing, table.Counts{}}
	if err := st.eachSource(t.VersionID, func(have *table.Version) (bool, error) { return st.takeLocked(p, have, &mapped), nil }); err != nil {
		return nil, err
	}
	st.pending[ref.ID()] = p
	return st.missingLocked(ctx, ref)
}

// missingLocked returns the blocks that a pending version lacks. One that lacks none is complete.
func (st *Staging) missingLocked(ctx context.Context, ref table.Ref) ([]table.BlockRun, error) {
	p := st.pending[ref.ID()]
	if p.missing.Count() > 0 {
		return p.missing.Runs(), nil
	}
	return nil, st.completeLocked(ctx, ref, p)
}

// takeLocked takes the places of blocks that are here, page by page, and reports whether nothing is missing any more. mapped are the
// blocks of the version. A page is the same if its index is, and all its sums, for the reason that keepLocked gives.
func (st *Staging) takeLocked(p *pendingTable, have *table.Version, mapped *table.BlockSet) (done bool) {
	taken := table.Counts{}
	for i, page := range p.table.Pages {
		q := have.Pages[i]
		if page == nil || q == nil || p.missing[i] == 0 || !samePage(page, q, mapped[i]) {
			continue
		}
		for m := p.missing[i]; m != 0; m &= m - 1 {
			j := bits.TrailingZeros64(m)
			page.Entries[j] = q.Entries[j]
			taken.Bump(q.Entries[j].Segment, table.Count{Refs: 1, Own: 1})
		}
		p.missing[i] = 0
	}
	p.counted.Add(taken)
	st.set.live.Move(taken)
	return p.missing.Count() == 0
}

// samePage reports whether q is the page p, of which mapped are the blocks.
func samePage(p, q *table.Page, mapped uint64) bool {
	if q.Index != p.Index || q.Bitmap() != mapped {
		return false
	}
	for m := mapped; m != 0; m &= m - 1 {
		if j := bits.TrailingZeros64(m); p.Entries[j].Sum != q.Entries[j].Sum {
			return false
		}
	}
	return true
}

// share takes the places of shared blocks from the older version.
func share(t, older *table.Version, shared *table.BlockSet) error {
	for i, p := range t.Pages {
		for m := shared[i]; m != 0; m &= m - 1 {
			j := bits.TrailingZeros64(m)
			before := older.Pages[i]
			if before == nil || !before.Entries[j].Mapped() || before.Entries[j].Sum != p.Entries[j].Sum {
				return storage.E("stage table", storage.KindConflict, t.Ref().String(), fmt.Errorf("the older version that holds block %d is not here", i*table.BlocksPerPage+j))
			}
			p.Entries[j] = before.Entries[j]
		}
	}
	return nil
}

// PutBlocks stages blocks of a version whose table was put: the payload holds its missing blocks from first on, whole
// and in order. Each is checked against its sum (KindCorrupt). KindNoSpace when the store has no room above its reserve. ctx is as that
// of Want.
func (st *Staging) PutBlocks(ctx context.Context, ref table.Ref, first int, payload []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.openLocked("stage blocks"); err != nil {
		return err
	}
	if st.known[ref.ID()] { // again, after a commit point that failed
		return st.saveIfDueLocked(ctx)
	}
	p := st.pending[ref.ID()]
	n := len(payload) / storage.BlockSize
	if p == nil || first < 0 || len(payload)%storage.BlockSize != 0 || n < 1 || n > table.MaxRun {
		return storage.E("stage blocks", storage.KindInvalid, ref.String(), fmt.Errorf("%d bytes from block %d", len(payload), first))
	}
	if p.missing.Count() == 0 { // again, after its table found no room
		return st.completeLocked(ctx, ref, p)
	}
	places, err := p.verify(ref, first, payload)
	if err != nil {
		return err
	}
	// A pull stops at the reserve, as writes do: what is below is for those that make room, of which it may be one.
	if err := st.s.room.MayTake("stage blocks", int64(len(payload)), st.makesRoom); err != nil {
		return err
	}
	// From before the blocks are in a segment until they are counted, none that may hold them is recycled.
	defer st.s.live.HoldFrom(st.s.log.Durable().Segment())()
	payload = bytes.Clone(payload) // the log keeps it by reference
	for len(places) > 0 {
		k := runOf(places, st.s.blocksPerRecord())
		if err := st.appendLocked(ref, p, places[:k], payload[:k*storage.BlockSize]); err != nil {
			return err
		}
		places, payload = places[k:], payload[k*storage.BlockSize:]
	}
	if p.missing.Count() > 0 {
		return nil
	}
	return st.completeLocked(ctx, ref, p)
}

// blocksPerRecord is how many blocks fit well into one record: all of a call, unless segments are very small.
func (s *Store) blocksPerRecord() int {
	return max(1, min(table.MaxRun, int(s.cfg.SegmentBytes/4/storage.BlockSize)))
}

// runOf returns how many of the places, at most limit, follow each other from the first on: what one data record may hold.
func runOf(places []int, limit int) int {
	n := 1
	for n < min(len(places), limit) && places[n] == places[0]+n {
		n++
	}
	return n
}

// appendLocked puts blocks into the log and notes their places.
func (st *Staging) appendLocked(ref table.Ref, p *pendingTable, places []int, payload []byte) error {
	data, end, err := st.s.log.AppendData(segment.DataHeader{Group: st.key.Group, Volume: ref.Volume, Extent: ref.Extent, Epoch: ref.Epoch,
		FirstBlock: uint16(places[0])}, payload)
	if err != nil {
		return err
	}
	st.end = max(st.end, end)
	for i, b := range places {
		e := &p.table.Pages[b/table.BlocksPerPage].Entries[b%table.BlocksPerPage]
		e.Segment, e.Offset = data.Segment(), data.Offset()+uint32(i)*storage.BlockSize
		p.missing.Drop(b)
	}
	st.moved += int64(len(places))
	st.unsaved.blocks += int64(len(places))
	n := table.Count{Refs: int64(len(places)), Own: int64(len(places))}
	p.counted.Bump(data.Segment(), n)
	st.set.live.Change(table.Counts{data.Segment(): n})
	return nil
}

// completeLocked stores a table all of whose blocks have a place. There is a commit point afterwards if one is due.
func (st *Staging) completeLocked(ctx context.Context, ref table.Ref, p *pendingTable) error {
	if err := st.storeLocked(p.table, p.older, p.counted); err != nil {
		return err
	}
	delete(st.pending, ref.ID())
	st.known[ref.ID()] = true
	if id := ref.ID().ExtentID; len(st.open[id]) > 1 {
		st.open[id] = st.open[id][1:]
	} else {
		delete(st.open, id)
	}
	return st.saveIfDueLocked(ctx)
}

// storeLocked puts a table into the staging's set, as the version that follows older, and counts what that stores and was not
// counted yet. The next commit point makes it durable.
//
// What is its own is found by place, not told by the source: so it is right beside whatever versions are here.
func (st *Staging) storeLocked(t, older *table.Version, counted table.Counts) error {
	if st.makesRoom { // others are above the reserve, or stop there with their blocks
		var n int64
		for _, p := range t.Pages {
			if p != nil {
				n += table.MaxPageLen
			}
		}
		if err := st.s.room.MayTake("stage tables", n, true); n > 0 && err != nil {
			return err
		}
	}
	counts := st.addLocked(t, older)
	for no, n := range counted {
		counts.Bump(no, table.Count{Refs: -n.Refs, Own: -n.Own})
	}
	st.set.live.Change(counts)
	return nil
}

// addLocked has the next commit point store a table, and returns what it stores.
func (st *Staging) addLocked(t, older *table.Version) table.Counts {
	counts, byEpoch := table.Counts{}, st.s.byEpoch()
	for i, p := range t.Pages {
		if p != nil {
			p.Follow(older.Pages[i], byEpoch)
			counts.Count(p, 1)
			k := table.PageKey{Volume: t.Volume, Extent: t.Extent, Page: uint8(i)}
			st.unsaved.pages[k] = append(st.unsaved.pages[k], p)
			st.unsaved.n++
		}
	}
	st.unsaved.counts.Add(counts)
	return counts
}

func (u *unsaved) reset() {
	*u = unsaved{pages: map[table.PageKey][]*table.Page{}, counts: table.Counts{}}
}

// saveIfDueLocked makes a commit point if enough has come since the last one.
func (st *Staging) saveIfDueLocked(ctx context.Context) error {
	if st.unsaved.n == 0 || st.unsaved.n < maxUnsavedPages && st.unsaved.blocks*storage.BlockSize < st.s.cfg.SegmentBytes {
		return nil
	}
	return st.saveLocked(ctx, nil)
}

// saveLocked makes a commit point: all that is complete, and what more adds, is durable afterwards. KindNoSpace while there is no room for
// tables: a commit waits for room without end, and nobody could end the pull meanwhile.
func (st *Staging) saveLocked(ctx context.Context, more func(*tabledb.Batch)) error {
	// Guards I1 and I7: the log before the tables. They refer to durable blocks only, when they are installed and when the next pull
	// shares from them.
	if err := st.s.log.Wait(ctx, st.end); err != nil {
		return err
	}
	if err := st.s.room.MayGrow("stage tables"); err != nil {
		return err
	}
	var keys []table.VersionKey
	pages := make(map[table.VersionKey]*table.Page, st.unsaved.n)
	for k, versions := range st.unsaved.pages {
		for _, p := range versions {
			v := table.VersionKey{PageKey: k, Epoch: p.Epoch}
			keys, pages[v] = append(keys, v), p
		}
	}
	slices.SortFunc(keys, table.VersionKey.Compare)
	record, byEpoch := table.Staged{Index: st.header.Index, AtSeconds: uint64(max(0, time.Now().Unix()))}, st.s.byEpoch()
	// Tables, counts and the name of the set are never of different moments: what a later process finds is in use and nothing else.
	err := st.s.db.Commit(func(b *tabledb.Batch) {
		w := tableset.PageWriter{Batch: b, Set: st.set.id, ByEpoch: byEpoch}
		for _, k := range keys {
			sched.Yield()
			w.Put(k, pages[k])
		}
		tableset.SetLive(b, st.set.id, st.set.live.After(st.unsaved.counts), byEpoch)
		tableset.SetStaged(b, st.key, st.set.id, record)
		if more != nil {
			more(b)
		}
	})
	if err != nil {
		return err
	}
	st.set.live.Stored(st.unsaved.counts)
	st.unsaved.reset()
	st.saved, st.record = true, record
	return nil
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
	drop := st.s.claimSources(st) // all that they have is here by now
	err = st.saveLocked(ctx, func(b *tabledb.Batch) {
		tableset.SetVolumes(b, st.state.All(st.set.id))
		fillDropStaged(b, drop)
	})
	if err != nil {
		st.s.listAgain(drop)
		return "", err
	}
	st.committed = true
	st.s.dismissSources(st)
	st.s.uncount(drop)
	return st.ID(), nil
}

// Abort gives the staging up, committed or not, and frees what it holds. It does nothing after Install and Keep.
func (st *Staging) Abort() {
	st.mu.Lock()
	if st.taken || st.ended {
		st.mu.Unlock()
		return
	}
	st.ended = true
	saved := st.saved
	st.mu.Unlock()
	if !st.finish(nil) {
		return
	}
	if saved {
		if err := st.s.removeSets([]*staged{{key: st.key, set: st.set}}); err != nil {
			st.s.logger.Warn("staged tables not removed", "staging", st.ID(), "error", err)
			return
		}
	}
	st.s.live.Drop(st.set.id) // otherwise the database has nothing of it
	st.s.worker.Recycle()
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

// close ends the staging with its store. What the last commit point holds is found at the next start.
func (st *Staging) close() {
	st.mu.Lock()
	st.ended = true
	st.mu.Unlock()
	st.finish(nil)
}

// finish takes the staging off the store's list, and puts what is kept of it on the other, if anything is; false if it was off already.
func (st *Staging) finish(kept *staged) bool {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, listed := s.stagings[st.set.id]; !listed {
		return false
	}
	delete(s.stagings, st.set.id)
	st.dismissLocked()
	if kept != nil {
		// Without what is not complete. Guards I6: before it is listed, and may be dropped: the counts of a set that is gone would keep its segments.
		s.live.Replace(kept.set.id, kept.set.live)
		s.staged[kept.set.id] = kept
	}
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
	st.finish(nil)
	if err := g.log.Reset(st.header.Index, st.header.Term); err != nil {
		return storage.E("install", storage.KindOf(err), "group "+g.key.String(), err)
	}
	g.store.mendAgain(st.set.live)
	g.store.worker.Purge()
	g.store.worker.Recycle()
	return nil
}

// mayInstall refuses a manifest that agrees with the replica's log, or lies below what it has applied. Guards I7: what
// follows it in the log was acknowledged, and counts towards what is committed; an install would empty the log.
func (g *Group) mayInstall(h *table.ManifestHeader) error {
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
	st := s.stagings[table.SetID(n)]
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
	record := table.GroupRecord{Set: st.set.id, From: g.log.NextNeeded(h.Index), Checkpoint: h.Checkpoint}
	g.mu.RLock()
	old := g.set
	g.mu.RUnlock()
	err := g.store.db.Commit(func(b *tabledb.Batch) {
		tableset.SetGroup(b, g.key, &record)
		b.Delete(table.StagedKey(g.key, st.set.id)) // it is a replica's now
		tableset.Drop(b, old.id)
	})
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set, g.record = st.set, record
	g.applied, g.term = h.Index, h.Term
	g.state = st.state
	g.purgeDue = map[storage.VolumeID]struct{}{}
	g.frozen = nil
	g.cache.reset()
	g.store.written.Drop(&g.sinceFreeze)
	g.wanted.Store(false)
	g.dueAnnounced = false
	g.store.live.Drop(old.id)
	return nil
}

// verify finds the missing blocks that the payload holds, and checks them.
func (p *pendingTable) verify(ref table.Ref, first int, payload []byte) (places []int, err error) {
	for b := first; b < storage.BlocksPerExtent && len(payload) > 0; b++ {
		if !p.missing.Has(b) {
			continue
		}
		if op.Sum(payload[:storage.BlockSize]) != p.table.At(b).Sum { // guards I5: damage is not taken over
			return nil, storage.E("stage blocks", storage.KindCorrupt, ref.String(), fmt.Errorf("checksum mismatch in block %d", b))
		}
		places, payload = append(places, b), payload[storage.BlockSize:]
	}
	if len(payload) > 0 {
		return nil, storage.E("stage blocks", storage.KindInvalid, ref.String(), fmt.Errorf("%d blocks more than are missing", len(payload)/storage.BlockSize))
	}
	return places, nil
}
