package extent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
	"github.com/storaged/storaged/replication/extent/bound"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/pace"
	"github.com/storaged/storaged/replication/extent/reclaim"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/replication/extent/scrub"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/segment"
)

// Store is one data directory: a segment log, and a Pebble database with the tables of its groups.
type Store struct {
	cfg      Config
	identity storedir.Identity // but for the format, which is in format
	format   atomic.Int64      // changed by RaiseFormat, under making
	lock     io.Closer
	db       *tabledb.DB
	log      *segment.Log
	logger   *slog.Logger
	metrics  *metrics
	room     *room.Room
	files    *storedir.FS // what cfg.FS is
	unsaved  bound.Limit
	scratch  scratchPool

	// What the groups share: bytes of log that no checkpoint holds, pages that were changed since the last Freeze, and
	// pages that are in memory although they could be loaded again.
	written, changed, cached bound.Budget

	failure  atomic.Pointer[storage.Error]
	failOnce sync.Once

	// making serialises what makes, names and removes replicas and table sets. It is held across syncs, which wait while the
	// disk has no room. So whatever must go on then does not take it. It is taken before all other locks.
	making sync.Mutex

	// mu guards all below. It is taken before a group's locks, and never held across a write.
	mu       sync.Mutex
	groups   map[segment.GroupKey]*Group
	stagings map[table.SetID]*Staging
	staged   map[table.SetID]*staged // of pulls that broke
	openMans map[*Manifest]struct{}
	closed   bool

	closeOnce sync.Once
	closeErr  error // of close; written once

	live   live.Index // which segments the table sets of groups and stagings refer to
	worker *reclaim.Worker

	compaction compaction      // of this store
	compactor  *compact.Worker // nil without Config.Compact
	mends      mends
	scrubber   *scrub.Worker
	pulls      *pace.Pace
	source     atomic.Pointer[Source] // nil: none yet

	stop    context.CancelFunc
	stopped sync.WaitGroup

	loaded func() // called when a page was read from Pebble, before the lock is taken; for tests
}

// Open opens the store in Config.Dir, or makes one. Errors are of KindConflict when the directory is in use by another
// process or belongs to another cluster, KindUnsupported for a later format, KindCorrupt for damaged tables and
// KindIO. A damaged log is no error: Log().Damaged() says which replicas must not vote.
func Open(cfg Config) (_ *Store, err error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	files := storedir.NewFS(cfg.FS, cfg.Logger)
	cfg.FS = files
	if err := storedir.Make(cfg.FS, cfg.Dir); err != nil {
		return nil, storage.E("make directory of", storage.KindIO, "store "+cfg.Dir, err)
	}
	s := &Store{cfg: cfg, files: files, logger: cfg.Logger, groups: map[segment.GroupKey]*Group{}, stagings: map[table.SetID]*Staging{},
		staged: map[table.SetID]*staged{}, openMans: map[*Manifest]struct{}{}, loaded: func() {}, mends: newMends()}
	var cleanup []func() error
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(cleanup) {
				_ = f() // the first error is the one to report
			}
		}
	}()
	if s.lock, err = storedir.Lock(cfg.FS, cfg.Dir); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, s.lock.Close)
	if s.identity, err = storedir.SettleIdentity(cfg.FS, cfg.Dir, storedir.Identity{Cluster: cfg.Cluster, Store: cfg.Store}); err != nil {
		return nil, err
	}
	s.format.Store(int64(s.identity.Format))
	s.compaction.Store = s
	if s.metrics, err = newMetrics(cfg.Metrics, s.identity.Store, files, s.Pulls, s.Staged); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, func() error { s.metrics.unregister(); return nil })
	if s.db, err = tabledb.Open(cfg.tables(s.fail)); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, s.db.Close)
	if err := s.load(); err != nil {
		return nil, err
	}
	if err := s.openLog(); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, s.log.Close)
	// What is acknowledged from here on lies in directories whose own entries are durable.
	if err := diskio.SyncDir(cfg.FS, cfg.Dir); err != nil {
		return nil, storage.E("open", storage.KindIO, "store "+cfg.Dir, err)
	}
	s.pulls = pace.New(func() time.Duration { return s.log.SyncLatency(segment.Pull) })
	s.scrubber = scrub.New(scrubbing{s}, cfg.ScrubInterval, s.logger.With("store", s.identity.Store))
	s.compaction.m = newCompactionMetrics(s.identity.Store)
	roomOf := cfg.room()
	if cfg.Compact {
		s.compactor = compact.New(s.compaction, s.compaction.m, s.logger)
		roomOf.InVain = s.compactor.InVain
	}
	s.room = room.New(roomOf, s.log, s.db, &s.live)
	s.shareLocked()
	files.Opened()
	if err := s.db.Opened(func() bool { return s.room.MakeRoom(true) }); err != nil {
		return nil, err
	}
	s.worker = s.newWorker()
	if err := s.compaction.m.register(cfg.Metrics, s); err != nil {
		return nil, err
	}
	s.runWorkers()
	return s, nil
}

// runWorkers runs what works beside the store until it is closed.
func (s *Store) runWorkers() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.stopped.Go(func() { s.worker.Run(ctx) })
	s.stopped.Go(func() { s.runMends(ctx) })
	s.stopped.Go(func() { s.scrubber.Run(ctx) })
	if s.compactor != nil {
		s.stopped.Go(func() { s.compactor.Run(ctx) })
	}
}

// load reads what Pebble holds of the groups, but for their tables, and discards table sets that nobody names.
func (s *Store) load() error {
	err := s.db.Scan([]byte{table.KeyGroup}, []byte{table.KeyGroup + 1}, func(k, v []byte) (bool, error) {
		key, ok := table.ParseGroupKey(k)
		if !ok {
			return false, table.Corrupt("open group", "key %x", k)
		}
		record, err := table.DecodeGroupRecord(k, v)
		if err != nil {
			return false, err
		}
		g := newGroup(s, key, nil, tableSet{id: record.Set}, record)
		s.groups[key] = g
		return true, nil
	})
	if err != nil {
		return err
	}
	if err := s.discardOrphans(); err != nil {
		return err
	}
	for _, g := range s.groups {
		if err := g.loadVolumes(); err != nil {
			return err
		}
		counts, err := tableset.Live(s.db, g.set.id)
		if err != nil {
			return err
		}
		g.set.live = live.NewSet(counts)
		s.live.Add(g.set.id, g.set.live)
	}
	return nil
}

// loadVolumes reads the small state of the group's volumes.
func (g *Group) loadVolumes() error {
	prefix := table.SetPrefix(table.KeyVolume, g.set.id)
	return g.store.db.Scan(prefix, table.AfterPrefix(prefix), func(k, v []byte) (bool, error) {
		id, vol, err := table.StoredVolume(k, v)
		if err != nil {
			return false, table.Corrupt("open group", "%s: volume with key %x: %w", g.key, k, err)
		}
		g.state.Put(id, vol)
		return true, nil
	})
}

// discardOrphans removes the table sets that no group names, nor are kept of a pull that broke, and what a power cut left of removed
// groups.
func (s *Store) discardOrphans() error {
	owned := map[table.SetID]bool{}
	for _, g := range s.groups {
		owned[g.set.id] = true
	}
	void, err := s.loadStaged(owned)
	if err != nil {
		return err
	}
	var orphans []table.SetID
	for _, kind := range tableset.Kinds() {
		for from := []byte{kind}; ; {
			k, _, ok, err := s.db.First(from, []byte{kind + 1})
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			set, ok := table.SetOf(k)
			if !ok {
				return table.Corrupt("open", "key %x", k)
			}
			if !owned[set] {
				owned[set] = true
				orphans = append(orphans, set)
			}
			if from = table.AfterPrefix(table.SetPrefix(kind, set)); from == nil {
				break
			}
		}
	}
	if len(orphans)+len(void) == 0 {
		return nil
	}
	return s.db.Commit(func(b *tabledb.Batch) {
		for _, k := range void {
			b.Delete(k)
		}
		for _, set := range orphans {
			tableset.Drop(b, set)
		}
	})
}

func (s *Store) openLog() error {
	c := s.cfg.Segment
	c.FS, c.Dir, c.Store = s.cfg.FS, storedir.LogDir(s.cfg.FS, s.cfg.Dir), s.identity.Store
	c.SegmentBytes, c.Logger, c.Metrics = s.cfg.SegmentBytes, s.cfg.Logger, s.cfg.Metrics
	c.Aligned = s.identity.Format >= storedir.AlignedRecords
	c.InUse, c.OnFailure, c.Groups = s.live.InUse, s.fail, nil
	for key, g := range s.groups {
		c.Groups = append(c.Groups, segment.GroupStart{Key: key, AppliedIndex: g.record.Index, AppliedTerm: g.record.Term, From: g.record.From})
	}
	var err error
	if s.log, err = segment.Open(c); err != nil {
		return err
	}
	for key, g := range s.groups {
		if g.log = s.log.Group(key); g.log == nil {
			_ = s.log.Close()
			return storage.E("open", storage.KindInternal, "group "+key.String(), errors.New("the log does not know it"))
		}
	}
	return nil
}

// ID returns the store's id.
func (s *Store) ID() storage.StoreID { return s.identity.Store }

// Log returns the store's segment log.
func (s *Store) Log() *segment.Log { return s.log }

// Failed returns why the disk has failed for good, or nil.
func (s *Store) Failed() error {
	if e := s.failure.Load(); e != nil {
		return e
	}
	return nil
}

// Fail marks the disk failed for good, whoever finds out; Failed says so from then on. It takes no lock, and does nothing
// the second time.
func (s *Store) Fail(err error) { s.fail(err) }

func (s *Store) fail(err error) {
	if errors.Is(err, storage.ErrNoSpace) && s.db.WaitingStopped() {
		return // it is closed while it waits for room: the disk is as good as before
	}
	s.failOnce.Do(func() {
		kind := storage.KindOf(err)
		if kind == storage.KindInternal && !errors.As(err, new(*storage.Error)) {
			kind = storage.KindIO
		}
		e := storage.E("use", kind, "store "+s.cfg.Dir, err)
		s.failure.Store(e)
		s.logger.Error("disk failed, its replicas stop until the process starts again", "store", s.identity.Store, "dir", s.cfg.Dir, "error", err)
		s.cfg.OnFailure(e)
	})
}

// Groups returns the replicas of this store, in ascending order.
func (s *Store) Groups() []segment.GroupKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.groups), compareKeys)
}

func compareKeys(a, b segment.GroupKey) int {
	if a.Group != b.Group {
		return int(int64(a.Group) - int64(b.Group))
	}
	return int(int64(a.Incarnation) - int64(b.Incarnation))
}

// Group returns a replica, or nil.
func (s *Store) Group(key segment.GroupKey) *Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups[key]
}

// incarnations is what Pebble holds under keyIncarnation.
type incarnations struct{ given, created uint32 }

func (s *Store) incarnations(group storage.GroupID) (i incarnations, err error) {
	key := table.IncarnationKey(group)
	value, err := s.db.Get(key)
	if err != nil || value == nil {
		return i, err
	}
	body, err := table.UnsealLen(key, value, table.AnyLen, 8)
	if err != nil {
		return i, table.Corrupt("read incarnations", "group %d: %w", group, err)
	}
	return incarnations{binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:])}, nil
}

func setIncarnations(b *tabledb.Batch, group storage.GroupID, i incarnations) {
	key := table.IncarnationKey(group)
	v := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, i.given), i.created)
	b.Set(key, table.Seal(key, v))
}

// NextIncarnation returns an incarnation of the group that this store has never had and will not be given again.
func (s *Store) NextIncarnation(group storage.GroupID) (storage.Incarnation, error) {
	if err := s.room.MayGrow("name a replica of"); err != nil {
		return 0, err
	}
	s.making.Lock() // two callers must not get the same
	defer s.making.Unlock()
	i, err := s.incarnations(group)
	if err != nil {
		return 0, err
	}
	i.given = max(i.given, i.created) + 1
	if err := s.db.Commit(func(b *tabledb.Batch) { setIncarnations(b, group, i) }); err != nil {
		return 0, err
	}
	return storage.Incarnation(i.given), nil
}

// CreateGroup makes an empty replica. KindExists if there is one of that key; KindConflict if this or a later
// incarnation of the group has been here before: what it promised is forgotten, so it must not come back.
func (s *Store) CreateGroup(key segment.GroupKey) (*Group, error) {
	fail := func(kind storage.Kind, err error) (*Group, error) {
		return nil, storage.E("create", kind, "group "+key.String(), err)
	}
	if err := s.Failed(); err != nil {
		return fail(storage.KindIO, err)
	}
	if err := s.room.MayGrow("create"); err != nil {
		return nil, err
	}
	s.making.Lock() // the group is there or not
	defer s.making.Unlock()
	if s.Group(key) != nil {
		return fail(storage.KindExists, nil)
	}
	inc, err := s.incarnations(key.Group)
	if err != nil {
		return nil, err
	}
	if key.Incarnation == 0 || uint32(key.Incarnation) <= inc.created {
		return fail(storage.KindConflict, fmt.Errorf("incarnation %d was here before, the next one is %d", key.Incarnation, inc.created+1))
	}
	inc.created = uint32(key.Incarnation)
	set, err := s.nextSet()
	if err != nil {
		return nil, err
	}
	log, err := s.log.CreateGroup(key, 0, 0)
	if err != nil {
		return nil, err
	}
	record := table.GroupRecord{Set: set, From: log.NextNeeded(0)}
	err = s.db.Commit(func(b *tabledb.Batch) {
		setIncarnations(b, key.Group, inc)
		tableset.SetGroup(b, key, &record)
	})
	if err != nil {
		s.log.DropGroup(key)
		return nil, err
	}
	g := newGroup(s, key, log, tableSet{set, live.NewSet(table.Counts{})}, record)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[key] = g
	s.live.Add(set, g.set.live)
	s.shareLocked()
	return g, nil
}

// RemoveGroup forgets a replica, its log, its tables and its votes. Nothing may use it any more. KindNotFound if it is
// not there.
func (s *Store) RemoveGroup(key segment.GroupKey) error {
	s.abortStagings(key)
	// What was begun meanwhile, too; of a replica that is gone none is begun (adopt). No lock is held: a staging may wait for the replica's.
	defer s.abortStagings(key)
	return s.removeGroup(key)
}

func (s *Store) removeGroup(key segment.GroupKey) error {
	s.making.Lock() // the group is there or not
	defer s.making.Unlock()
	g := s.Group(key)
	if g == nil {
		return storage.E("remove", storage.KindNotFound, "group "+key.String(), nil)
	}
	kept := s.stagedOf(key)
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.Lock()
	g.removed, g.cache.closed = true, true
	set := g.set
	g.mu.Unlock()
	err := s.db.Commit(func(b *tabledb.Batch) {
		stable := table.GroupKey(table.KeyStable, key)
		b.Delete(table.GroupKey(table.KeyGroup, key))
		b.DeleteRange(stable, table.AfterPrefix(stable))
		tableset.Drop(b, set.id)
		fillDropStaged(b, kept)
	})
	if err != nil {
		return err
	}
	s.uncount(kept)
	s.mu.Lock()
	s.unlistLocked(kept)
	delete(s.groups, key)
	s.shareLocked()
	s.mu.Unlock()
	s.written.Drop(&g.sinceFreeze)
	g.cache.dropShares()
	s.live.Drop(set.id)
	s.log.DropGroup(key)
	s.worker.Forget(key)
	s.worker.Recycle()
	return nil
}

// nextSet hands out a table set id, durably, because sets of ids above the counter may not exist. making is held.
func (s *Store) nextSet() (table.SetID, error) {
	key := []byte{table.KeyCounter}
	value, err := s.db.Get(key)
	if err != nil {
		return 0, err
	}
	next := uint64(1)
	if value != nil {
		body, err := table.UnsealLen(key, value, table.AnyLen, 8)
		if err != nil {
			return 0, table.Corrupt("read counter", "%w", err)
		}
		next = binary.LittleEndian.Uint64(body)
	}
	err = s.db.Commit(func(b *tabledb.Batch) {
		b.Set(key, table.Seal(key, binary.LittleEndian.AppendUint64(nil, next+1)))
	})
	return table.SetID(next), err
}

// shareLocked divides the limits among the groups. Of the cache a quarter is theirs by right, so that all together keep
// CacheBytes.
func (s *Store) shareLocked() {
	n := int64(max(1, len(s.groups)))
	pages := max(s.cfg.CacheBytes/pageMemory, 64*n)
	s.cached.Set(pages-pages/4, pages/4/n)
	s.changed.Set(2*pages, 2*pages/n)
	written := s.room.CheckpointBytes()
	s.written.Set(written, written/n)
	s.unsaved.SetLimit(unsavedShares * pages)
}

// PullPace says how fast blocks may be read from the disk, and written to it, for pulls.
func (s *Store) PullPace() *pace.Pace { return s.pulls }

// Compacts reports whether the store makes room by itself.
func (s *Store) Compacts() bool { return s.cfg.Compact }

// SegmentBytes returns the size of new segments.
func (s *Store) SegmentBytes() int64 { return s.cfg.SegmentBytes }

// Space returns how full the store is, and what takes its room. See room.Room.Space.
func (s *Store) Space() room.Space { return s.room.Space().WithCompaction(s.compacting()) }

// compacting is what compaction does now.
func (s *Store) compacting() storage.CompactionState {
	if s.compactor == nil {
		return storage.CompactionOff
	}
	return s.compactor.State()
}

// StopWaiting ends all waiting for room, now and later: what finds none from now on fails with KindNoSpace, and is not on the
// disk. Call it before Close when users of the store, which may be waiting for room, have to end first.
func (s *Store) StopWaiting() {
	s.db.StopWaiting()
	s.log.StopWaiting()
}

// Close stops what runs in the background, closes the log (which syncs it) and the database. Nothing may use the
// store meanwhile or afterwards; open manifests are closed. It returns the first error.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.StopWaiting()
	s.mu.Lock()
	s.closed = true
	s.files.Stop()
	manifests := slices.Collect(maps.Keys(s.openMans))
	stagings := slices.Collect(maps.Values(s.stagings))
	s.mu.Unlock()
	for _, m := range manifests {
		m.Close()
	}
	for _, st := range stagings {
		st.close()
	}
	s.stop()
	s.stopped.Wait()
	err := s.log.Close()
	if e := s.db.Close(); err == nil {
		err = e
	}
	s.metrics.unregister()
	s.compaction.m.unregister() // twice is harmless
	if e := s.lock.Close(); err == nil && e != nil {
		err = storage.E("close", storage.KindIO, "store "+s.cfg.Dir, e)
	}
	return err
}
