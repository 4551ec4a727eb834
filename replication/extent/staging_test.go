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
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// A block that the disk did not give back was written anew. A pull does not bring its old place back: neither by way of what an earlier
// pull has left, which refers to it, nor when it had taken the place over before the block was mended.
//
// Guards I1, one copy more than people think: in eachSource, the replica's own tables come first ("before"; the other way round it
// failed); Install has the segments of bad places read again ("meanwhile" failed without).
func TestPullDoesNotBringBackBadPlaces(t *testing.T) {
	for _, when := range []string{"before", "meanwhile"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const extents = 4
				src, m := manySource(t, storedir.NewestFormat, extents)
				dst, _ := newTarget(t, memFS(t), storedir.NewestFormat)
				defer func() { _ = dst.s.Close() }()
				finishPull(t, src.g, dst.g)
				good := blocks(0, 8)[:storage.BlockSize]
				dst.s.MendFrom(func(_ context.Context, _ segment.GroupKey, u Unreadable, dst []byte) error {
					if copy(dst, good); op.Sum(good) != u.Sum {
						t.Errorf("asked for %+v", u)
					}
					return nil
				})
				for x := range 2 {
					q := src.write(storage.ExtentIndex(extents-1-x), 0, blocks(uint64(1000+x), 8))
					src.ok(q)
					m.apply(q, 1)
				}
				src.checkpoint()
				man, st := stage(t, src.g, dst.s)
				defer man.Close()
				_, err := pullUntil(man, st, func(moved int) bool { return moved >= 8 && when == "before" })
				bad := dst.at(0, 1)
				mendIt := func() {
					dst.rot(bad)
					n, err := dst.s.mend(t.Context(), mend{g: dst.g, page: table.PageKey{Volume: 1}, entry: bad, data: good})
					if n != 1 || err != nil || dst.at(0, 1).Position() == bad.Position() {
						t.Fatalf("mended %d: %v", n, err)
					}
				}
				if when == "before" {
					if !errors.Is(err, errBroken) {
						t.Fatal(err)
					}
					st.Keep()
					mendIt()
					dst.checkpoint()
					finishPull(t, src.g, dst.g)
				} else {
					mendIt()
					id, e := st.Commit(t.Context())
					if e == nil {
						e = dst.g.Install(id)
					}
					if err = errors.Join(err, e); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
				}
				if dst.at(0, 1).Position() == bad.Position() {
					t.Error("the block lies at its bad place again")
				}
				if err := errors.Join(checkLive(dst.g), m.compare(dst.g, extents, 2*table.BlocksPerPage)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Of two pulls of a replica that share from what an earlier one has left, the first to be complete leaves it to the other.
//
// Guards I1, in staged.go: claimSources looks at users. Without, the other one found no tables, and moved all again.
func TestSharedSourceOutlivesCommit(t *testing.T) {
	const extents, all = 4, 4 * 16
	src, m := manySource(t, storedir.NewestFormat, extents)
	dst, cfg := newTarget(t, memFS(t), storedir.NewestFormat)
	man, st := stage(t, src.g, dst.s)
	if _, err := pullUntil(man, st, func(moved int) bool { return moved >= 40 }); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	man.Close()
	st.Keep()
	one, first := stage(t, src.g, dst.s)
	defer one.Close()
	dst.s.mu.Lock() // Stage would end it
	delete(dst.s.stagings, first.set.id)
	dst.s.mu.Unlock()
	two, second := stage(t, src.g, dst.s)
	defer two.Close()
	dst.s.mu.Lock()
	dst.s.stagings[first.set.id] = first
	dst.s.mu.Unlock()
	for i, p := range []*Staging{first, second} {
		moved, err := pullUntil([]*Manifest{one, two}[i], p, never)
		if err == nil {
			_, err = p.Commit(t.Context())
		}
		if err != nil || moved != all-40 {
			t.Errorf("pull %d moved %d blocks, want %d: %v", i, moved, all-40, err)
		}
		if n := len(dst.s.staged); n != 1-i {
			t.Errorf("%d sets are kept after pull %d", n, i)
		}
	}
	first.Abort()
	if err := dst.g.Install(second.ID()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(checkLive(dst.g), m.compare(dst.g, extents, 2*table.BlocksPerPage)); err != nil {
		t.Error(err)
	}
	_ = dst.s.Close()
	if found := findings(t, cfg.FS); len(found) > 0 {
		t.Errorf("%q", found)
	}
}

// slowLog holds back the syncs of the log while it is closed.
type slowLog struct {
	mu   sync.Mutex
	open chan struct{} // closed: nothing is held back; guarded by mu
}

func (s *slowLog) String() string { return "slow log" }

func (s *slowLog) MaybeError(o errorfs.Op) error {
	if isSync(o) && strings.Contains(o.Path, testDir+"/log") {
		s.mu.Lock()
		open := s.open
		s.mu.Unlock()
		<-open
	}
	return nil
}

func (s *slowLog) close() (open func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = make(chan struct{})
	return sync.OnceFunc(func() { close(s.open) })
}

// A pull is ended while it waits for the log at a commit point, and goes on afterwards. Without room for tables it does not wait at all.
//
// Guards saveLocked: it waits with the caller's ctx, and asks MayGrow. Without either this did not end.
func TestCommitPointEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		slow := &slowLog{}
		slow.close()()
		fs := &fullFS{FS: errorfs.Wrap(memFS(t), slow), full: func(name string, _ vfs.DiskWriteCategory) error {
			if full.Load() && strings.Contains(name, "/meta") {
				return syscall.ENOSPC
			}
			return nil
		}}
		src, m := manySource(t, storedir.NewestFormat, 4)
		dst, _ := newTarget(t, fs, storedir.NewestFormat)
		defer func() { _ = dst.s.Close() }()
		man, st := stage(t, src.g, dst.s)
		defer man.Close()
		for i := range int(man.StateParts) {
			part, err := man.StatePart(i)
			if err == nil {
				err = st.PutState(i, part)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		refs, err := man.Extents(table.Ref{}, 10)
		if err == nil {
			_, err = st.Want(t.Context(), refs)
		}
		if err != nil {
			t.Fatal(err)
		}
		open := slow.close()
		defer open()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begun := time.Now()
		for _, ref := range refs {
			if err = pullTable(ctx, man, st, ref); err != nil {
				break
			}
		}
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took != 10*time.Second {
			t.Fatalf("%v after %v", err, took)
		}
		open()
		synctest.Wait()
		if moved, err := pullUntil(man, st, never); err != nil || moved == 0 {
			t.Fatal(moved, err)
		}
		full.Store(true)
		waits := make(chan error, 1)
		go func() {
			waits <- dst.s.db.Commit(func(b *tabledb.Batch) { b.Set([]byte("?"), make([]byte, 1<<10)) })
		}()
		synctest.Wait()
		if _, err := st.Commit(t.Context()); !errors.Is(err, storage.ErrNoSpace) {
			t.Fatalf("without room for tables: %v", err)
		}
		full.Store(false)
		if err := <-waits; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		id, err := st.Commit(t.Context())
		if err == nil {
			err = dst.g.Install(id)
		}
		if err = errors.Join(err, checkLive(dst.g), m.compare(dst.g, 4, 2*table.BlocksPerPage)); err != nil {
			t.Error(err)
		}
	})
}

// pullTable pulls one version of an extent that was asked for.
func pullTable(ctx context.Context, m *Manifest, st *Staging, ref table.Ref) error {
	encoded, err := m.Table(ref)
	if err != nil {
		return err
	}
	runs, err := st.PutTable(ctx, ref, encoded)
	for _, run := range runs {
		payload, e := m.Blocks(ref, run.First, run.N, nil)
		if e == nil {
			e = st.PutBlocks(ctx, ref, run.First, payload)
		}
		if e != nil {
			return e
		}
	}
	return err
}

// A pull into a replica that is removed while it begins does not begin, or is ended.
//
// Guards I6: adopt looks for the replica, and RemoveGroup ends what was begun meanwhile. Without either this failed.
func TestNoPullOfARemovedReplica(t *testing.T) {
	var meanwhile atomic.Pointer[func()]
	fs := &fullFS{FS: memFS(t), full: func(name string, _ vfs.DiskWriteCategory) error {
		if strings.Contains(name, "/meta") {
			if f := meanwhile.Swap(nil); f != nil {
				(*f)()
			}
		}
		return nil
	}}
	dst, _ := newTarget(t, fs, storedir.NewestFormat)
	g := dst.g
	begin := func(set table.SetID) bool { // as Stage does, which had looked for the replica before
		st := &Staging{s: dst.s, g: g, mu: newTurn(), key: testKey, set: tableSet{set, live.NewSet(table.Counts{})}}
		dst.s.live.Add(set, st.set.live)
		return dst.s.adopt(st)
	}
	begun := false
	f := func() { begun = begin(1000) }
	meanwhile.Store(&f)
	if err := dst.s.RemoveGroup(testKey); err != nil {
		t.Fatal(err)
	}
	if !begun || dst.s.Pulls() != 0 {
		t.Errorf("while it is removed: begun %v, %d pulls are left", begun, dst.s.Pulls())
	}
	if begin(1001) || dst.s.Pulls() != 0 {
		t.Errorf("afterwards: %d pulls of a replica that is gone", dst.s.Pulls())
	}
}
