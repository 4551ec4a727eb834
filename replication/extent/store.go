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

	"github.com/cockroachdb/pebble/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// Store is one data directory: a segment log, and a Pebble database with the tables of its groups.
type Store struct {
	cfg      Config
	identity Identity
	lock     io.Closer
	meta     *meta
	log      *segment.Log
	logger   *slog.Logger
	metrics  *metrics
	space    spaceCache
	files    *openFS // what cfg.FS is
	unsaved  unsavedPages
	scratch  scratchPool

	// What the groups share: bytes of log that no checkpoint holds, pages that were changed since the last Freeze, and
	// pages that are in memory although they could be loaded again.
	written, changed, cached budget

	failure  atomic.Pointer[storage.Error]
	failOnce sync.Once

	// mu guards all below. It is taken before a group's locks.
	mu       sync.Mutex
	groups   map[segment.GroupKey]*Group
	stagings map[setID]*Staging
	openMans map[*Manifest]struct{}
	closed   bool

	setsMu sync.Mutex // guards sets and floors; a leaf but for the locks of live counts
	sets   map[setID]*liveCounts
	// floors: from these segments on there may be blocks of a staging that are not counted yet.
	floors map[setID]segment.SegmentNo

	purge   chan struct{} // capacity 1: there may be something to purge; never closed
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// Open opens the store in Config.Dir, or makes one. Errors are of KindConflict when the directory is in use by another
// process or belongs to another cluster, KindUnsupported for a later format, KindCorrupt for damaged tables and
// KindIO. A damaged log is no error: Log().Damaged() says which replicas must not vote.
func Open(cfg Config) (_ *Store, err error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	files := &openFS{FS: cfg.FS, logger: cfg.Logger, stop: make(chan struct{})}
	cfg.FS = files
	if err := makeDir(cfg.FS, cfg.Dir); err != nil {
		return nil, storage.E("make directory of", storage.KindIO, "store "+cfg.Dir, err)
	}
	s := &Store{cfg: cfg, files: files, logger: cfg.Logger, groups: map[segment.GroupKey]*Group{}, stagings: map[setID]*Staging{},
		sets: map[setID]*liveCounts{}, floors: map[setID]segment.SegmentNo{}, purge: make(chan struct{}, 1), openMans: map[*Manifest]struct{}{}}
	var cleanup []func() error
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(cleanup) {
				_ = f() // the first error is the one to report
			}
		}
	}()
	if s.lock, err = lockDir(cfg.FS, cfg.Dir); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, s.lock.Close)
	if s.identity, err = settleIdentity(&cfg); err != nil {
		return nil, err
	}
	if s.metrics, err = newMetrics(cfg.Metrics, s.identity.Store, files); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, s.metrics.unregister)
	if s.meta, err = openMeta(&cfg, metaDir(cfg.FS, cfg.Dir), false, s.fail); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, s.meta.close)
	if err := s.load(); err != nil {
		return nil, err
	}
	if err := s.openLog(); err != nil {
		return nil, err
	}
	cleanup = append(cleanup, s.log.Close)
	// What is acknowledged from here on lies in directories whose own entries are durable.
	if err := syncDir(cfg.FS, cfg.Dir); err != nil {
		return nil, storage.E("open", storage.KindIO, "store "+cfg.Dir, err)
	}
	s.shareLocked()
	files.opened.Store(true)
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.stopped.Go(func() { s.runPurge(ctx) })
	s.stopped.Go(func() { s.runReclaim(ctx) })
	return s, nil
}

// load reads what Pebble holds of the groups, but for their tables, and discards table sets that nobody names.
func (s *Store) load() error {
	err := s.meta.scan([]byte{keyGroup}, []byte{keyGroup + 1}, func(k, v []byte) (bool, error) {
		key, ok := parseGroupKey(k)
		if !ok {
			return false, corrupt("open group", "key %x", k)
		}
		record, err := decodeGroupRecord(k, v)
		if err != nil {
			return false, err
		}
		g := newGroup(s, key, nil, tableSet{record.set, newLiveCounts(counts{})}, record)
		s.groups[key] = g
		s.sets[record.set] = g.set.live
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
		if g.set.live.durable, err = s.meta.loadLive(g.set.id); err != nil {
			return err
		}
	}
	return nil
}

// loadVolumes reads the small state of the group's volumes.
func (g *Group) loadVolumes() error {
	prefix := setPrefix(keyVolume, g.set.id)
	return g.store.meta.scan(prefix, afterPrefix(prefix), func(k, v []byte) (bool, error) {
		vol, err := decodeVolume(k, v)
		if err != nil || len(k) != 17 {
			return false, corrupt("open group", "%s: volume with key %x: %w", g.key, k, err)
		}
		g.volumes[parseVolumeKey(k)] = vol
		return true, nil
	})
}

func (m *meta) loadLive(set setID) (counts, error) {
	live := counts{}
	prefix := setPrefix(keyLive, set)
	err := m.scan(prefix, afterPrefix(prefix), func(k, v []byte) (bool, error) {
		_, no, n, err := decodeLive(k, v)
		live[no] = n
		return true, err
	})
	return live, err
}

// discardOrphans removes the table sets that no group names: stagings that were not installed, and what a power cut
// left of removed groups.
func (s *Store) discardOrphans() error {
	owned := map[setID]bool{}
	for _, g := range s.groups {
		owned[g.set.id] = true
	}
	var orphans []setID
	for _, kind := range []byte{keyPage, keyLive, keyVolume, keyPurge} {
		for from := []byte{kind}; ; {
			k, _, ok, err := s.meta.first(from, []byte{kind + 1})
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if len(k) < 9 {
				return corrupt("open", "key %x", k)
			}
			set := setID(be.Uint64(k[1:]))
			if !owned[set] {
				owned[set] = true
				orphans = append(orphans, set)
			}
			if from = afterPrefix(setPrefix(kind, set)); from == nil {
				break
			}
		}
	}
	if len(orphans) == 0 {
		return nil
	}
	return s.meta.commit(func(b *pebble.Batch) error {
		for _, set := range orphans {
			if err := dropSet(b, set); err != nil {
				return err
			}
		}
		return nil
	})
}

// dropSet removes everything of a table set.
func dropSet(b *pebble.Batch, set setID) error {
	for _, kind := range []byte{keyPage, keyLive, keyVolume, keyPurge} {
		prefix := setPrefix(kind, set)
		if err := b.DeleteRange(prefix, afterPrefix(prefix), nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) openLog() error {
	c := s.cfg.Segment
	c.FS, c.Dir, c.Store = s.cfg.FS, s.cfg.FS.PathJoin(s.cfg.Dir, logDirName), s.identity.Store
	c.SegmentBytes, c.Logger, c.Metrics = s.cfg.SegmentBytes, s.cfg.Logger, s.cfg.Metrics
	c.InUse, c.OnFailure, c.Groups = s.segmentInUse, s.fail, nil
	for key, g := range s.groups {
		c.Groups = append(c.Groups, segment.GroupStart{Key: key, AppliedIndex: g.record.Index, AppliedTerm: g.record.Term, From: g.record.from})
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

// Cluster returns the cluster that the store belongs to.
func (s *Store) Cluster() storage.ClusterID { return s.identity.Cluster }

// Dir returns the data directory.
func (s *Store) Dir() string { return s.cfg.Dir }

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
	s.failOnce.Do(func() {
		kind := storage.KindOf(err)
		if kind == storage.KindInternal && !errors.As(err, new(*storage.Error)) {
			kind = storage.KindIO
		}
		e := storage.E("use", kind, "store "+s.cfg.Dir, err)
		s.failure.Store(e)
		s.logger.Error("disk failed, its replicas stop until the process starts again", "store", s.identity.Store, "dir", s.cfg.Dir, "err", err)
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
	key := incarnationKey(group)
	value, err := s.meta.get(key)
	if err != nil || value == nil {
		return i, err
	}
	body, err := unseal(key, value)
	if err != nil || len(body) != 8 {
		return i, corrupt("read incarnations", "group %d: %v", group, err)
	}
	return incarnations{binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:])}, nil
}

func setIncarnations(b *pebble.Batch, group storage.GroupID, i incarnations) error {
	key := incarnationKey(group)
	v := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, i.given), i.created)
	return b.Set(key, seal(key, v), nil)
}

// NextIncarnation returns an incarnation of the group that this store has never had and will not be given again.
func (s *Store) NextIncarnation(group storage.GroupID) (storage.Incarnation, error) {
	s.mu.Lock() // held across the sync: two callers must not get the same
	defer s.mu.Unlock()
	i, err := s.incarnations(group)
	if err != nil {
		return 0, err
	}
	i.given = max(i.given, i.created) + 1
	if err := s.meta.commit(func(b *pebble.Batch) error { return setIncarnations(b, group, i) }); err != nil {
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
	s.mu.Lock() // held across the sync: the group is there or not
	defer s.mu.Unlock()
	if s.groups[key] != nil {
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
	set, err := s.nextSetLocked()
	if err != nil {
		return nil, err
	}
	log, err := s.log.CreateGroup(key, 0, 0)
	if err != nil {
		return nil, err
	}
	record := groupRecord{set: set, from: log.NextNeeded(0)}
	err = s.meta.commit(func(b *pebble.Batch) error {
		k := groupKeyBytes(keyGroup, key)
		return errors.Join(setIncarnations(b, key.Group, inc), b.Set(k, record.appendValue(nil, k), nil))
	})
	if err != nil {
		s.log.DropGroup(key)
		return nil, err
	}
	g := newGroup(s, key, log, tableSet{set, newLiveCounts(counts{})}, record)
	s.groups[key] = g
	s.addSet(g.set)
	s.shareLocked()
	return g, nil
}

// RemoveGroup forgets a replica, its log, its tables and its votes. Nothing may use it any more. KindNotFound if it is
// not there.
func (s *Store) RemoveGroup(key segment.GroupKey) error {
	s.abortStagings(key)
	s.mu.Lock() // held across the sync: the group is there or not
	defer s.mu.Unlock()
	g := s.groups[key]
	if g == nil {
		return storage.E("remove", storage.KindNotFound, "group "+key.String(), nil)
	}
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.Lock()
	g.removed = true
	set := g.set
	g.mu.Unlock()
	err := s.meta.commit(func(b *pebble.Batch) error {
		stable := groupKeyBytes(keyStable, key)
		return errors.Join(b.Delete(groupKeyBytes(keyGroup, key), nil), b.DeleteRange(stable, afterPrefix(stable), nil), dropSet(b, set.id))
	})
	if err != nil {
		return err
	}
	delete(s.groups, key)
	s.unsaved.drop(&g.unsaved)
	g.forgetShares()
	s.dropSet(set.id)
	s.log.DropGroup(key)
	s.shareLocked()
	s.recycle()
	return nil
}

// nextSetLocked hands out a table set id, durably, because sets of ids above the counter may not exist.
func (s *Store) nextSetLocked() (setID, error) {
	key := []byte{keyCounter}
	value, err := s.meta.get(key)
	if err != nil {
		return 0, err
	}
	next := uint64(1)
	if value != nil {
		body, err := unseal(key, value)
		if err != nil || len(body) != 8 {
			return 0, corrupt("read counter", "%v", err)
		}
		next = binary.LittleEndian.Uint64(body)
	}
	err = s.meta.commit(func(b *pebble.Batch) error {
		return b.Set(key, seal(key, binary.LittleEndian.AppendUint64(nil, next+1)), nil)
	})
	return setID(next), err
}

func (s *Store) addSet(t tableSet) {
	s.setsMu.Lock()
	defer s.setsMu.Unlock()
	s.sets[t.id] = t.live
}

func (s *Store) dropSet(id setID) {
	s.setsMu.Lock()
	defer s.setsMu.Unlock()
	delete(s.sets, id)
}

// holdFrom keeps every segment from the end of the log on from being recycled until release is called.
func (s *Store) holdFrom(set setID) (release func()) {
	s.setsMu.Lock()
	defer s.setsMu.Unlock()
	s.floors[set] = s.log.Durable().Segment()
	return func() {
		s.setsMu.Lock()
		defer s.setsMu.Unlock()
		delete(s.floors, set)
	}
}

// segmentInUse reports whether any table set refers to the segment, or soon may.
func (s *Store) segmentInUse(no segment.SegmentNo) bool {
	s.setsMu.Lock()
	defer s.setsMu.Unlock()
	for _, floor := range s.floors {
		if no >= floor {
			return true
		}
	}
	for _, l := range s.sets {
		if l.inUse(no) {
			return true
		}
	}
	return false
}

// shareLocked divides the limits among the groups. Of the cache a quarter is theirs by right, so that all together keep
// CacheBytes.
func (s *Store) shareLocked() {
	n := int64(max(1, len(s.groups)))
	pages := max(s.cfg.CacheBytes/pageMemory, 64*n)
	s.cached.set(pages-pages/4, pages/4/n)
	s.changed.set(2*pages, 2*pages/n)
	s.written.set(s.cfg.CheckpointBytes, s.cfg.CheckpointBytes/n)
	s.unsaved.setLimit(unsavedShares * pages)
}

// Close stops what runs in the background, closes the log (which syncs it) and the database. Nothing may use the
// store meanwhile or afterwards; open manifests are closed. It returns the first error.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.files.stop)
	manifests := slices.Collect(maps.Keys(s.openMans))
	stagings := slices.Collect(maps.Values(s.stagings))
	s.mu.Unlock()
	for _, m := range manifests {
		m.Close()
	}
	for _, st := range stagings {
		st.finish()
	}
	s.stop()
	s.stopped.Wait()
	err := s.log.Close()
	if e := s.meta.close(); err == nil {
		err = e
	}
	_ = s.metrics.unregister() // unregistering twice is harmless
	if e := s.lock.Close(); err == nil && e != nil {
		err = storage.E("close", storage.KindIO, "store "+s.cfg.Dir, e)
	}
	return err
}
