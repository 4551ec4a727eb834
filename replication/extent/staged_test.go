package extent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// errBroken is the end of a pull that a test breaks.
var errBroken = errors.New("broken")

// pullUntil is pull, which ends with errBroken when broken says so, given how many blocks it has moved.
func pullUntil(m *Manifest, st *Staging, broken func(moved int) bool) (moved int, err error) {
	for i := range int(m.StateParts) {
		part, err := m.StatePart(i)
		if err == nil {
			err = st.PutState(i, part)
		}
		if err != nil {
			return 0, err
		}
	}
	var after table.Ref
	for {
		refs, err := m.Extents(after, 16)
		if err != nil || len(refs) == 0 {
			return moved, err
		}
		after = refs[len(refs)-1]
		want, err := st.Want(context.Background(), refs)
		if err != nil {
			return moved, err
		}
		for _, ref := range want {
			encoded, err := m.Table(ref)
			if err != nil {
				return moved, err
			}
			runs, err := st.PutTable(context.Background(), ref, encoded)
			if err != nil {
				return moved, err
			}
			for _, run := range runs {
				if broken(moved) {
					return moved, errBroken
				}
				payload, err := m.Blocks(ref, run.First, run.N, nil)
				if err == nil {
					err = st.PutBlocks(context.Background(), ref, run.First, payload)
				}
				if err != nil {
					return moved, err
				}
				moved += run.N
			}
		}
	}
}

// manySource is a replica with n extents of 8 blocks in each of two pages, and what it must hold.
func manySource(t *testing.T, format, n int) (*side, *model) {
	t.Helper()
	src := newSide(t, format)
	t.Cleanup(func() { _ = src.s.Close() })
	m := newModel()
	do := func(q request) { src.ok(q); m.apply(q, 1) }
	do(openSession(1))
	for x := range n {
		for _, at := range []uint32{0, table.BlocksPerPage} {
			do(src.write(storage.ExtentIndex(x), at*storage.BlockSize, blocks(uint64(100*x)+uint64(at), 8)))
		}
	}
	src.checkpoint()
	return src, m
}

// newTarget is an empty replica with a commit point for each 16 blocks.
func newTarget(t *testing.T, fs vfs.FS, format int) (*rig, Config) {
	t.Helper()
	cfg := testConfig(fs)
	cfg.SegmentBytes = 64 * kib
	cfg.Segment.RetainBytes, cfg.Segment.CacheBytes = -1, 1
	r := newRig(t, cfg)
	raise(t, r.s, format)
	return r, cfg
}

// stage begins a pull of the newest checkpoint.
func stage(t testing.TB, src *Group, to *Store) (*Manifest, *Staging) {
	t.Helper()
	man, err := src.OpenManifest()
	if err != nil {
		t.Fatal(err)
	}
	st, err := to.Stage(testKey, header(t, man))
	if err != nil {
		t.Fatal(err)
	}
	return man, st
}

// age makes what is kept so much older.
func age(t *testing.T, r *rig, by time.Duration) {
	t.Helper()
	r.s.mu.Lock()
	for _, k := range r.s.staged {
		k.record.AtSeconds -= uint64(by / time.Second)
		if err := r.s.db.Commit(func(b *tabledb.Batch) { tableset.SetStaged(b, k.key, k.set.id, k.record) }); err != nil {
			t.Error(err)
		}
	}
	r.s.mu.Unlock()
}

// full has others take all but a little of the disk.
func full(r *rig) {
	r.s.cfg.FS.(*storedir.FS).FS.(*sharedFS).others.Store(1<<30 - 512*kib)
}

// never breaks a pull.
func never(int) bool { return false }

// finishPull pulls what is missing, installs it, and returns how many blocks were moved.
func finishPull(t testing.TB, src, to *Group) (moved int) {
	t.Helper()
	man, st := stage(t, src, to.store)
	defer man.Close()
	moved, err := pullUntil(man, st, never)
	var id string
	if err == nil {
		id, err = st.Commit(context.Background())
	}
	if err == nil {
		err = to.Install(id)
	}
	if err != nil {
		t.Fatal(err)
	}
	return moved
}

// A pull that ends at any commit point goes on from there: by a power cut, by a stop, or by an error of the source, whose manifest is
// another one afterwards. After a power cut, what had come since the last commit point is moved again; else nothing is.
//
// Guards I1 and I8. In staging.go: saveLocked waits for the log, and counts what it stores and nothing else (without the wait, and with
// all counts, this failed); Stage adopts what is kept; in store.go: load keeps its sets. In
// staged.go: Keep adds the pages of versions that are not complete. Each was taken out once, and this failed.
func TestPullGoesOn(t *testing.T) {
	t.Parallel()
	const extents, all = 24, 24 * 16
	for format := 1; format <= storedir.NewestFormat; format++ {
		for _, how := range []string{"power cut", "stop", "error"} {
			t.Run(fmt.Sprintf("format %d, %s", format, how), func(t *testing.T) {
				t.Parallel()
				src, m := manySource(t, format, extents)
				step := 3 * 16
				if testing.Short() {
					step = 5 * 16
				} else if format == storedir.NewestFormat {
					step = 16
				}
				for at := 16; at < all; at += step {
					fs := memFS(t)
					dst, cfg := newTarget(t, fs, format)
					man, st := stage(t, src.g, dst.s)
					first, err := pullUntil(man, st, func(moved int) bool { return moved >= at+8 })
					if !errors.Is(err, errBroken) {
						t.Fatal(err)
					}
					man.Close()
					switch how {
					case "power cut":
						cfg.FS = fs.CrashClone(vfs.CrashCloneCfg{})
						_ = dst.s.Close()
						if found := findings(t, cfg.FS); len(found) > 0 {
							t.Fatalf("cut after %d blocks: %q", first, found)
						}
						dst.s = openStore(t, cfg)
						t.Cleanup(func() { _ = dst.s.Close() })
						dst.recover()
					case "stop":
						st.Keep()
						dst.reopen(cfg)
					case "error":
						st.Keep()
					}
					if err := checkLive(dst.g); err != nil {
						t.Fatalf("broken after %d blocks: %v", first, err)
					}
					moved := first + finishPull(t, src.g, dst.g)
					if moved < all || moved > all && how != "power cut" || moved > all*11/10 {
						t.Errorf("broken after %d blocks: %d were moved in all, of %d", first, moved, all)
					}
					if err := errors.Join(checkLive(dst.g), m.compare(dst.g, extents, 2*table.BlocksPerPage)); err != nil {
						t.Fatalf("broken after %d blocks: %v", first, err)
					}
					if len(dst.s.staged) > 0 || dst.s.Pulls() > 0 {
						t.Errorf("%d sets and %d pulls are left", len(dst.s.staged), dst.s.Pulls())
					}
					if err := dst.s.Close(); err != nil {
						t.Fatal(err)
					}
					if found := findings(t, cfg.FS); len(found) > 0 {
						t.Fatalf("broken after %d blocks: %q", first, found)
					}
				}
			})
		}
	}
}

// A pull that breaks again and again, while the source is written to, ends, and what it moved twice is what was written.
func TestPullThatBreaksOftenEnds(t *testing.T) {
	t.Parallel()
	const extents, all, step = 24, 24 * 16, 40
	src, m := manySource(t, storedir.NewestFormat, extents)
	dst, cfg := newTarget(t, memFS(t), storedir.NewestFormat)
	total, written := 0, 0
	for i := 0; ; i++ {
		man, st := stage(t, src.g, dst.s)
		moved, err := pullUntil(man, st, func(moved int) bool { return moved >= step })
		total += moved
		man.Close()
		if err == nil {
			id, err := st.Commit(context.Background())
			if err == nil {
				err = dst.g.Install(id)
			}
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if i > all/8 {
			t.Fatalf("%d blocks moved, and no end", total)
		}
		st.Keep()
		if i%2 == 0 {
			dst.reopen(cfg)
		}
		if n := len(dst.s.staged); n > maxStaged {
			t.Fatalf("%d sets are kept", n)
		}
		q := src.write(storage.ExtentIndex(i%extents), 0, blocks(uint64(5000+i), 8)) // a page: 8 blocks
		src.ok(q)
		m.apply(q, 1)
		src.checkpoint()
		written += 8
	}
	if total > all*11/10+written {
		t.Errorf("%d blocks were moved, of %d and %d that were written meanwhile", total, all, written)
	}
	if err := errors.Join(checkLive(dst.g), m.compare(dst.g, extents, 2*table.BlocksPerPage)); err != nil {
		t.Fatal(err)
	}
}

// What was complete, and was not installed, is kept also when all of it had come by earlier pulls, whose sets it has replaced.
//
// Guards I8, in staged.go: Keep asks whether there were any. Without it this failed.
func TestCompletePullIsKept(t *testing.T) {
	const extents, all = 4, 4 * 16
	src, m := manySource(t, storedir.NewestFormat, extents)
	dst, cfg := newTarget(t, memFS(t), storedir.NewestFormat)
	for i, want := range []int{all, 0, 0} {
		man, st := stage(t, src.g, dst.s)
		moved, err := pullUntil(man, st, never)
		if err != nil || moved != want {
			t.Errorf("pull %d moved %d blocks, want %d: %v", i, moved, want, err)
		}
		id, err := st.Commit(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		man.Close()
		dst.s.GiveUp(id, testKey)
		if len(dst.s.staged) != 1 || dst.s.Staged() != all*storage.BlockSize {
			t.Errorf("after pull %d, %d sets are kept, %d bytes", i, len(dst.s.staged), dst.s.Staged())
		}
		dst.reopen(cfg)
		if err := checkLive(dst.g); err != nil {
			t.Error(err)
		}
	}
	if moved := finishPull(t, src.g, dst.g); moved != 0 {
		t.Errorf("%d blocks were moved at the end", moved)
	}
	if err := errors.Join(checkLive(dst.g), m.compare(dst.g, extents, 2*table.BlocksPerPage)); err != nil {
		t.Error(err)
	}
}

// The power is cut at every call of a pull that is broken, goes on, and of what is kept being dropped: what is found then is sound, and
// the next pull shares from it.
//
// Guards I1. In staged.go, removeSets syncs before segments are used again: without (CommitNoSync) this failed.
func TestPowerCutDuringBrokenPulls(t *testing.T) {
	t.Parallel()
	const extents = 8
	src, m := manySource(t, storedir.NewestFormat, extents)
	disk := memFS(t)
	c := newCrasher(t, disk, 1)
	dst, cfg := newTarget(t, c.wrap(), storedir.NewestFormat)
	c.on.Store(true)
	for i := range 4 {
		man, st := stage(t, src.g, dst.s)
		if _, err := pullUntil(man, st, func(moved int) bool { return moved >= 40 }); err == nil {
			st.Abort()
		} else {
			st.Keep()
		}
		man.Close()
		if i == 2 { // what is kept goes, and its segments are used again
			dst.s.worker.Checkpointed(false) // the log does not need them
			before := len(segments{dst.s.log, &dst.s.live}.Dead())
			if _, err := dst.s.dropStaged(dst.s.idleStaged()...); err != nil {
				t.Fatal(err)
			}
			if n := len(segments{dst.s.log, &dst.s.live}.Dead()); n <= before {
				t.Fatalf("%d segments are dead, and %d were before: the test shows nothing", n, before)
			}
			dst.s.worker.Recycle()
			if n := len(segments{dst.s.log, &dst.s.live}.Dead()); n > 0 {
				t.Fatalf("%d segments are not used again: the test shows nothing", n)
			}
			for range 12 { // by whoever writes next, whose commits to the database come later
				_, end, err := dst.s.log.AppendData(segment.DataHeader{Group: 1, Volume: 1}, blocks(1, 8))
				if err == nil {
					err = dst.s.log.Wait(context.Background(), end)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	cuts := c.take()
	kept := 0
	for i, cut := range cuts {
		if found := findings(t, cut.disk); len(found) > 0 {
			t.Fatalf("cut at %s: %q", cut.call, found)
		}
		if i%8 != 0 {
			continue
		}
		cfg.FS = cut.disk
		s := openStore(t, cfg)
		g := s.Group(testKey)
		if n := len(s.staged); n > 0 {
			kept++
		}
		if err := checkLive(g); err != nil {
			t.Fatalf("cut at %s: %v", cut.call, err)
		}
		finishPull(t, src.g, g)
		if err := errors.Join(checkLive(g), m.compare(g, extents, 2*table.BlocksPerPage)); err != nil {
			t.Fatalf("cut at %s: %v", cut.call, err)
		}
		_ = s.Close()
	}
	if len(cuts) < 100 || kept < 10 {
		t.Errorf("%d cuts, after %d something was kept", len(cuts), kept)
	}
}

// Another block with the same checksum, written to the source since, is moved.
//
// Guards I5, in staging.go: samePage compares the index. Without it this failed.
func TestPullMovesAnotherBlockWithTheSameSum(t *testing.T) {
	src, m := manySource(t, storedir.NewestFormat, 1)
	dst := newSide(t, storedir.NewestFormat)
	defer func() { _ = dst.s.Close() }()
	finishPull(t, src.g, dst.g)
	was := blocks(0, 8)
	other := bytes.Clone(was)
	for i, b := range binary.LittleEndian.AppendUint64(nil, 1|0x82f63b78<<1)[:5] { // the polynomial itself
		other[100+i] ^= b
	}
	if op.Sum(was[:storage.BlockSize]) != op.Sum(other[:storage.BlockSize]) {
		t.Fatal("the sums differ: the test shows nothing")
	}
	q := src.write(0, 0, other)
	src.ok(q)
	m.apply(q, 1)
	src.checkpoint()
	if moved := finishPull(t, src.g, dst.g); moved != 8 {
		t.Errorf("%d blocks were moved, want 8", moved)
	}
	if err := m.compare(dst.g, 1, 2*table.BlocksPerPage); err != nil {
		t.Error(err)
	}
}

// A replica that was away, and has all but a few blocks, moves the pages that changed, not their extents.
//
// Guards, in staging.go, takeLocked: without it, all blocks of the extents are moved.
func TestPullMovesPages(t *testing.T) {
	t.Parallel()
	const extents = 8
	for format := 1; format <= storedir.NewestFormat; format++ {
		src, m := manySource(t, format, extents)
		dst := newSide(t, format)
		finishPull(t, src.g, dst.g)
		for x := range extents {
			q := src.write(storage.ExtentIndex(x), table.BlocksPerPage*storage.BlockSize, blocks(uint64(7000+x), 1))
			src.ok(q)
			m.apply(q, 1)
		}
		src.checkpoint()
		if moved := finishPull(t, src.g, dst.g); moved != extents*8 {
			t.Errorf("format %d: %d blocks were moved, want the %d of the pages that changed", format, moved, extents*8)
		}
		if err := errors.Join(checkLive(dst.g), m.compare(dst.g, extents, 2*table.BlocksPerPage)); err != nil {
			t.Fatal(err)
		}
		if found := dst.findings(); len(found) > 0 {
			t.Errorf("format %d: %q", format, found)
		}
	}
}

// While a pull takes over places from the replica's tables no checkpoint is written of it. With one, that no longer has the blocks,
// their segments would be used again before the staging counts them.
//
// Guards I1, in staging.go: eachSource holds commitMu. Without it this failed.
func TestNothingIsCheckpointedWhilePullTakesPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, _ := manySource(t, storedir.NewestFormat, 2)
		dst := newSide(t, storedir.NewestFormat)
		defer func() { _ = dst.s.Close() }()
		finishPull(t, src.g, dst.g)
		dst.index, _ = dst.g.Applied()
		dst.seq = src.seq
		dst.ok(dst.write(0, 0, blocks(9, 8)))
		man, st := stage(t, src.g, dst.s)
		defer man.Close()
		defer st.Abort()
		written := make(chan error, 1)
		st.mu.Lock()
		looked := 0
		err := st.eachSource(table.VersionID{ExtentID: table.ExtentID{Volume: 1}, Epoch: 1}, func(have *table.Version) (bool, error) {
			looked++
			go func() { written <- dst.tryCheckpoint() }()
			synctest.Wait()
			if len(written) > 0 {
				t.Error("a checkpoint was written meanwhile")
			}
			return true, nil
		})
		st.mu.Unlock()
		if err = errors.Join(err, <-written); err != nil || looked != 1 {
			t.Fatal(looked, err)
		}
	})
}

// What is kept of a broken pull does not stay for ever: it goes after a week, with the replica, when the replica has got as far without
// it, and before clients are refused for want of room. A pull that shares from it keeps it.
//
// Guards I6: each case is a line of stagedDue, or the batch of RemoveGroup; taken out, the case failed.
func TestKeptPullGoes(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, src *side, dst *rig, cfg *Config)
		left int
	}{
		{"not at once", func(*testing.T, *side, *rig, *Config) { time.Sleep(time.Minute) }, 1},
		{"not within a week", func(t *testing.T, _ *side, dst *rig, _ *Config) {
			age(t, dst, stagedFor-time.Hour)
			time.Sleep(time.Minute)
		}, 1},
		{"after a week", func(t *testing.T, _ *side, dst *rig, _ *Config) {
			age(t, dst, stagedFor)
			time.Sleep(time.Minute)
		}, 0},
		{"with the replica", func(t *testing.T, _ *side, dst *rig, _ *Config) {
			if err := dst.s.RemoveGroup(testKey); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"with the replica, while nothing runs", func(t *testing.T, _ *side, dst *rig, cfg *Config) {
			if err := dst.s.db.Commit(func(b *tabledb.Batch) { b.Delete(table.GroupKey(table.KeyGroup, testKey)) }); err != nil {
				t.Fatal(err)
			}
			_ = dst.s.Close()
			dst.s = openStore(t, *cfg)
		}, 0},
		{"when the replica has got as far", func(_ *testing.T, src *side, dst *rig, _ *Config) {
			for i := uint64(1); i <= src.index; i++ {
				dst.index++
				dst.g.Apply([]ApplyEntry{{Index: i, Term: 1}})
			}
			time.Sleep(time.Minute)
		}, 0},
		{"without room", func(_ *testing.T, _ *side, dst *rig, _ *Config) {
			full(dst)
			time.Sleep(time.Minute)
		}, 0},
		{"without room, while a pull shares from it", func(t *testing.T, src *side, dst *rig, _ *Config) {
			man, _ := stage(t, src.g, dst.s)
			t.Cleanup(man.Close)
			full(dst)
			time.Sleep(time.Minute)
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, _ := manySource(t, storedir.NewestFormat, 8)
				fs := &sharedFS{FS: memFS(t), total: 1 << 30}
				dst, cfg := newTarget(t, fs, storedir.NewestFormat)
				defer func() { _ = dst.s.Close() }()
				man, st := stage(t, src.g, dst.s)
				if _, err := pullUntil(man, st, func(moved int) bool { return moved >= 70 }); !errors.Is(err, errBroken) {
					t.Fatal(err)
				}
				man.Close()
				st.Keep()
				if len(dst.s.staged) != 1 || dst.s.Staged() < 64*storage.BlockSize {
					t.Fatalf("%d sets are kept, %d bytes", len(dst.s.staged), dst.s.Staged())
				}
				c.do(t, src, dst, &cfg)
				synctest.Wait()
				dst.s.mu.Lock()
				left := len(dst.s.staged)
				dst.s.mu.Unlock()
				if left != c.left {
					t.Errorf("%d sets are kept, want %d", left, c.left)
				}
				if blocks, _ := dst.s.live.Blocks(); c.left == 0 && blocks != 0 {
					t.Errorf("%d blocks still count", blocks)
				}
				from := []byte{table.KeyStaged}
				if k, _, found, err := dst.s.db.First(from, table.AfterPrefix(from)); err != nil || found != (c.left > 0) {
					t.Errorf("key %x: %v", k, err)
				}
			})
		})
	}
}
