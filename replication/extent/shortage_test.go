package extent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

// fullFS is a file system on which some files get no room while full says so. A write that meets it has taken half of its
// bytes, as on a real one.
type fullFS struct {
	vfs.FS
	full func(name string, c vfs.DiskWriteCategory) error
	hit  atomic.Int64
}

func (f *fullFS) refuse(name string, c vfs.DiskWriteCategory) error {
	err := f.full(name, c)
	if err != nil {
		f.hit.Add(1)
	}
	return err
}

func (f *fullFS) wrap(file vfs.File, err error, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &fullFile{file, f, name, c}, nil
}

func (f *fullFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.refuse(name, c); err != nil && strings.HasPrefix(f.PathBase(name), "marker.") {
		return nil, err // what is empty has a place; only its entry needs one, now and then
	}
	file, err := f.FS.Create(name, c)
	return f.wrap(file, err, name, c)
}

func (f *fullFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(from, to, c)
	return f.wrap(file, err, to, c)
}

type fullFile struct {
	vfs.File
	fs   *fullFS
	name string
	c    vfs.DiskWriteCategory
}

func (f *fullFile) Write(p []byte) (int, error) {
	if err := f.fs.refuse(f.name, f.c); err != nil {
		n, werr := f.File.Write(p[:len(p)/2])
		return n, errors.Join(err, werr)
	}
	return f.File.Write(p)
}

func (f *fullFile) Preallocate(offset, n int64) error {
	if err := f.fs.refuse(f.name, f.c); err != nil {
		return err
	}
	return f.File.Preallocate(offset, n)
}

// The file system is full to the last byte for what the tables write: memtables that are flushed, the tables' own log, the
// manifest, compactions. The store says that it is full, reads on, and goes on by itself when there is room again; nothing is
// lost, and nothing was failed. Guards the calls of insist in tabledb's metaFS and metaFile, and what BackgroundError makes of it.
func TestTablesWithoutRoomWait(t *testing.T) {
	table := func(c string) func(string, vfs.DiskWriteCategory) bool {
		return func(_ string, got vfs.DiskWriteCategory) bool { return string(got) == c }
	}
	all := func(name string, _ vfs.DiskWriteCategory) bool { return strings.Contains(name, "meta") }
	for _, tc := range []struct {
		name string
		of   func(string, vfs.DiskWriteCategory) bool
		err  error
	}{
		{"flush", table("pebble-memtable-flush"), syscall.ENOSPC},
		{"compaction", table("pebble-compaction"), syscall.ENOSPC},
		{"compaction, quota", table("pebble-compaction"), syscall.EDQUOT},
		{"log", table("pebble-wal"), syscall.ENOSPC},
		{"manifest", table("pebble-manifest"), syscall.ENOSPC},
		{"all", all, syscall.ENOSPC},
		{"all, quota", all, syscall.EDQUOT},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tablesWithoutRoom(t, tc.of, tc.err) })
		})
	}
}

func tablesWithoutRoom(t *testing.T, of func(string, vfs.DiskWriteCategory) bool, lack error) {
	var on atomic.Bool
	fs := &fullFS{FS: vfs.NewCrashableMem(), full: func(name string, c vfs.DiskWriteCategory) error {
		if on.Load() && of(name, c) {
			return lack
		}
		return nil
	}}
	r, cfg := smallTables(t, fs)
	cfg.OnFailure = func(error) {}
	written := writeTables(r, 0, 60)
	<-written
	on.Store(true)
	written = writeTables(r, 60, 800)
	time.Sleep(time.Minute)
	if fs.hit.Load() == 0 {
		t.Fatal("there was room for all: the test shows nothing")
	}
	if err := r.s.Failed(); err != nil {
		t.Fatalf("the disk has failed: %v", err)
	}
	if s := r.s.Space(); !s.Full() || s.FreeBytes != 0 {
		t.Errorf("a store without room for its tables says %+v", s)
	}
	if _, err := r.s.NextIncarnation(7); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("something new is made in a store without room for its tables: %v", err)
	}
	wantTables(r, 60) // from tables that are on the disk, too: the cache holds a few pages
	on.Store(false)
	<-written
	time.Sleep(time.Minute)
	if s := r.s.Space(); s.Full() {
		t.Errorf("there is room again, and the store says %+v", s)
	}
	wantTables(r, 800)
	if err := errors.Join(r.s.Failed(), r.s.Close()); err != nil {
		t.Fatal(err)
	}
	r.s = openStore(t, cfg)
	r.g = r.s.Group(testKey)
	replay(t, r.g)
	wantTables(r, 800)
}

// smallTables opens a store that flushes and compacts its tables often, and caches few of them.
func smallTables(t *testing.T, fs vfs.FS) (*rig, Config) {
	cfg := testConfig(fs)
	cfg.MemTableBytes, cfg.BlockCacheBytes, cfg.CacheBytes = 64<<10, 64<<10, 1
	r := newRig(t, cfg)
	r.ok(openSession(1))
	return r, cfg
}

// spread is the extent of the i-th write: every table file has some of the whole range.
func spread(i uint64) storage.ExtentIndex { return storage.ExtentIndex(i * 37 % 800) }

// wantTables reads what the first n writes have written.
func wantTables(r *rig, n uint64) {
	r.t.Helper()
	for i := range n {
		r.wantRead(spread(i), 0, blocks(i, 1))
	}
}

// writeTables writes a block to each of as many extents, with a checkpoint after every few, and closes the channel when it
// is done.
func writeTables(r *rig, first, end uint64) chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := first; i < end; i++ {
			r.ok(r.write(spread(i), 0, blocks(i, 1)))
			if i%4 == 3 {
				r.checkpoint()
			}
		}
	}()
	return done
}

// A sync that says that there is no room has failed like any other: what became of the bytes before is not known.
func TestSyncWithoutRoomFailsTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failures atomic.Int64
		fs := &syncFS{FS: vfs.NewCrashableMem()}
		cfg := testConfig(fs)
		cfg.MemTableBytes, cfg.OnFailure = 64<<10, func(error) { failures.Add(1) }
		r := newRig(t, cfg)
		r.ok(openSession(1))
		fs.full.Store(true)
		for i := range uint64(400) {
			if _, err := r.tryPropose(r.write(storage.ExtentIndex(i), 0, blocks(i, 1))); err != nil || r.tryCheckpoint() != nil {
				break // it has failed meanwhile
			}
		}
		synctest.Wait()
		if err := r.s.Failed(); !errors.Is(err, syscall.ENOSPC) || failures.Load() != 1 {
			t.Errorf("failed: %v, told %d times", err, failures.Load())
		}
		_ = r.s.Close() // says so again
	})
}

// syncFS fails syncs of tables for want of room.
type syncFS struct {
	vfs.FS
	full atomic.Bool
}

func (f *syncFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err != nil || !strings.HasSuffix(name, ".sst") {
		return file, err
	}
	return &syncFile{file, f}, nil
}

type syncFile struct {
	vfs.File
	fs *syncFS
}

func (f *syncFile) Sync() error {
	if f.fs.full.Load() {
		return syscall.ENOSPC
	}
	return f.File.Sync()
}

func (f *syncFile) SyncData() error { return f.Sync() }

// A store without room for its tables is closed in the end, and has lost nothing.
func TestCloseWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var on atomic.Bool
		fs := &fullFS{FS: vfs.NewCrashableMem(), full: func(name string, _ vfs.DiskWriteCategory) error {
			if on.Load() && strings.Contains(name, "meta") {
				return syscall.ENOSPC
			}
			return nil
		}}
		r, cfg := smallTables(t, fs)
		<-writeTables(r, 0, 60)
		on.Store(true)
		var working sync.WaitGroup
		working.Go(func() {
			for i := uint64(800); r.tryCheckpoint() == nil; i++ {
				if _, err := r.tryPropose(r.write(1000+spread(i), 0, blocks(i, 1))); err != nil {
					return
				}
			}
		})
		time.Sleep(time.Minute)
		begun := time.Now()
		_ = r.s.Close() // its tables could not be written
		working.Wait()
		if d := time.Since(begun); d > time.Minute {
			t.Errorf("closed after %v", d)
		}
		if _, err := Open(cfg); !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("opened without room: %v", err)
		}
		on.Store(false)
		r.s = openStore(t, cfg)
		r.g = r.s.Group(testKey)
		replay(t, r.g)
		wantTables(r, 60)
	})
}

// What the tables may need at once is part of the reserve, however small it was chosen.
func TestReserveHoldsWhatTablesNeed(t *testing.T) {
	cfg := testConfig(memFS(t))
	cfg.ReserveBytes, cfg.MemTableBytes = 1, 64<<10
	r := newRig(t, cfg)
	if got, least := r.s.Space().ReserveBytes, cfg.SegmentBytes+3*cfg.MemTableBytes; got < least {
		t.Errorf("%d bytes are kept in reserve, want at least %d", got, least)
	}
}

// A pull stops at the reserve, and the store it stops in is as good as before.
func TestPullStopsAtReserve(t *testing.T) {
	synctest.Test(t, pullStopsAtReserve)
}

func pullStopsAtReserve(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	r.ok(openSession(1))
	for i := range uint64(20) {
		r.ok(r.write(storage.ExtentIndex(i), 0, blocks(i, 16)))
	}
	r.checkpoint()
	man, err := r.g.OpenManifest()
	if err != nil {
		t.Fatal(err)
	}
	defer man.Close()
	cfg := testConfig(memFS(t))
	cfg.Store, cfg.ReserveBytes, cfg.CapacityBytes = storage.StoreID{7}, 1<<20, 2<<20
	dst := newRig(t, cfg)
	st, err := dst.s.Stage(testKey, header(t, man))
	if err != nil {
		t.Fatal(err)
	}
	refused := false
	list, err := man.Extents(table.Ref{}, 20)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range list {
		time.Sleep(room.TTL) // the figures may be as old
		err := pullVersion(man, st, ref)
		if refused = errors.Is(err, storage.ErrNoSpace); err != nil && !refused {
			t.Fatal(err)
		}
		if refused {
			break
		}
	}
	if !refused || dst.s.Failed() != nil {
		t.Fatalf("refused: %v, failed: %v", refused, dst.s.Failed())
	}
	if s := dst.s.Space(); s.FreeBytes < s.ReserveBytes-cfg.SegmentBytes {
		t.Errorf("the pull went below the reserve: %+v", s)
	}
	st.Abort()
	dst.ok(openSession(1))
}

// pullVersion pulls one version of an extent.
func pullVersion(m *Manifest, st *Staging, ref table.Ref) error {
	if _, err := st.Want(context.Background(), []table.Ref{ref}); err != nil {
		return err
	}
	table, err := m.Table(ref)
	if err != nil {
		return err
	}
	runs, err := st.PutTable(context.Background(), ref, table)
	for _, run := range runs {
		var payload []byte
		if payload, err = m.Blocks(ref, run.First, run.N, nil); err == nil {
			err = st.PutBlocks(context.Background(), ref, run.First, payload)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// Segments that are free and wait to be used again are room: tables that find none on the file system get theirs.
func TestTablesGetFreeSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var on atomic.Bool
		mem := vfs.NewCrashableMem()
		fs := &fullFS{FS: mem}
		segments := func() int {
			names, err := mem.List(mem.PathJoin(testDir, "log"))
			if err != nil {
				t.Error(err)
			}
			return len(names)
		}
		fewest := 0
		fs.full = func(name string, _ vfs.DiskWriteCategory) error {
			if !on.Load() || !strings.Contains(name, "meta") {
				return nil
			}
			if segments() < fewest {
				on.Store(false)
				return nil
			}
			return syscall.ENOSPC
		}
		r, _ := smallTables(t, fs)
		for range 20 { // the same extent, so that segments fall empty
			r.ok(r.write(0, 0, blocks(1, 32)))
			r.ok(r.write(0, 0, blocks(2, 32)))
			r.checkpoint()
			index, _ := r.g.Applied()
			r.g.Log().Compact(index)
		}
		r.checkpoint()
		if fewest = segments(); fewest < 4 {
			t.Fatalf("there are %d segments: the test shows nothing", fewest)
		}
		on.Store(true)
		written := writeTables(r, 0, 200)
		time.Sleep(time.Minute)
		select {
		case <-written:
		default:
			on.Store(false)
			<-written
			t.Error("the tables wait for room although segments are free")
		}
		if fs.hit.Load() == 0 || on.Load() {
			t.Errorf("%d of %d segments are left, %d writes of tables found no room", segments(), fewest, fs.hit.Load())
		}
	})
}

// Whatever waits for room holds the store up no longer than until it is closed, also what holds its lock meanwhile.
func TestCloseWhileSomethingIsMadeWithoutRoom(t *testing.T) {
	other := segment.GroupKey{Group: testKey.Group + 1, Incarnation: 1}
	for _, tc := range []struct {
		name string
		do   func(s *Store) error
	}{
		{"remove", func(s *Store) error { return s.RemoveGroup(other) }},
		{"create", func(s *Store) error {
			_, err := s.CreateGroup(segment.GroupKey{Group: other.Group + 1, Incarnation: 1})
			return err
		}},
		{"name", func(s *Store) error {
			_, err := s.NextIncarnation(other.Group + 1)
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var on atomic.Bool
			fs := &fullFS{FS: vfs.NewCrashableMem(), full: func(name string, _ vfs.DiskWriteCategory) error {
				if on.Load() && strings.Contains(name, "meta") {
					return syscall.ENOSPC
				}
				return nil
			}}
			r, _ := smallTables(t, fs)
			if _, err := r.s.CreateGroup(other); err != nil {
				t.Fatal(err)
			}
			on.Store(true)
			ended := make(chan error, 2)
			go func() { ended <- tc.do(r.s) }()
			for fs.hit.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			go func() { ended <- r.s.Close() }()
			for range 2 {
				select {
				case err := <-ended:
					if !errors.Is(err, storage.ErrNoSpace) {
						t.Errorf("ended with %v", err)
					}
				case <-time.After(30 * time.Second):
					t.Fatal("a store without room does not close")
				}
			}
			if err := r.s.Close(); !errors.Is(err, storage.ErrNoSpace) {
				t.Errorf("closed again, it says %v", err)
			}
		})
	}
}

// A replica that was away while what it holds was discarded, in a store below its reserve, comes back by a pull that makes room: while
// it counts among the voters nothing can be written to its group, however much the others have discarded.
func TestPullThatMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fill := func(r *rig) {
			r.ok(openSession(1))
			for i := range uint64(20) {
				r.ok(r.write(storage.ExtentIndex(i), 0, blocks(i, 16)))
			}
			r.checkpoint()
		}
		src := newRig(t, testConfig(memFS(t)))
		fill(src)
		for i := range uint64(20) {
			src.ok(src.clear(storage.ExtentIndex(i), 0, 16*storage.BlockSize))
		}
		src.checkpoint()
		man, err := src.g.OpenManifest()
		if err != nil {
			t.Fatal(err)
		}
		defer man.Close()
		cfg := testConfig(memFS(t))
		cfg.Store, cfg.ReserveBytes, cfg.CapacityBytes = storage.StoreID{7}, 1<<20, 5<<19
		dst := newRig(t, cfg)
		fill(dst)
		time.Sleep(room.TTL)
		if s := dst.s.Space(); !s.Full() {
			t.Fatalf("there is room, and the test shows nothing: %+v", s)
		}
		st, err := dst.s.Stage(testKey, header(t, man))
		if err != nil {
			t.Fatalf("below its reserve the store refuses what would make room: %v", err)
		}
		pull(t, man, st)
		id, err := st.Commit(t.Context())
		if err == nil {
			err = dst.g.Install(id)
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := dst.s.Space(); s.Full() {
			t.Errorf("after the pull: %+v", s)
		}
	})
}
