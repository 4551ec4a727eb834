package extent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// roundFS is a file system that has no room at chosen calls. It counts the calls that may want some. A write that is refused has
// taken half of its bytes, as on a real one.
type roundFS struct {
	vfs.FS
	at    int64 // the first call that is refused; 0: none is
	once  bool  // and no other
	err   error // of the call; nil: ENOSPC
	syncs bool  // calls are syncs, else all that write or change the directory

	on    atomic.Bool
	kind  string // of the calls that count; all if empty
	calls atomic.Int64
	hit   atomic.Pointer[string]
}

func (f *roundFS) refuse(call, name string, sync bool) error {
	if !f.on.Load() || sync != f.syncs {
		return nil
	}
	if f.kind != "" && kindOf(call) != f.kind { // is not counted
		if f.once || f.hit.Load() == nil {
			return nil
		}
		return syscall.ENOSPC
	}
	n := f.calls.Add(1)
	if f.at == 0 || n < f.at || f.once && n > f.at {
		return nil
	}
	what := fmt.Sprintf("call %d, %s of %s", n, call, name)
	f.hit.CompareAndSwap(nil, &what)
	if f.err != nil {
		return f.err
	}
	return syscall.ENOSPC
}

// kindOf is what a call does: it writes, gives a file its name, or makes one.
func kindOf(call string) string {
	switch call {
	case "create", "reuse", "fallocate":
		return "make"
	case "rename", "link", "remove":
		return "name"
	}
	return call
}

func (f *roundFS) what() string {
	if s := f.hit.Load(); s != nil {
		return *s
	}
	return "no call"
}

func (f *roundFS) open(call, name string, open func() (vfs.File, error)) (vfs.File, error) {
	if err := f.refuse(call, name, false); call != "" && err != nil {
		return nil, err
	}
	file, err := open()
	if err != nil {
		return nil, err
	}
	return &roundFile{file, f, name}, nil
}

func (f *roundFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open("create", name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *roundFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open("reuse", to, func() (vfs.File, error) { return f.FS.ReuseForWrite(from, to, c) })
}

func (f *roundFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	return &roundFile{file, f, name}, nil
}

func (f *roundFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &roundFile{d, f, name}, nil
}

func (f *roundFS) Rename(from, to string) error {
	if err := f.refuse("rename", to, false); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

func (f *roundFS) Link(from, to string) error {
	if err := f.refuse("link", to, false); err != nil {
		return err
	}
	return f.FS.Link(from, to)
}

// Remove wants room on file systems that write nothing in place.
func (f *roundFS) Remove(name string) error {
	if err := f.refuse("remove", name, false); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

type roundFile struct {
	vfs.File
	fs   *roundFS
	name string
}

func (f *roundFile) Write(p []byte) (int, error) {
	if err := f.fs.refuse("write", f.name, false); err != nil {
		n, werr := f.File.Write(p[:len(p)/2])
		return n, errors.Join(err, werr)
	}
	return f.File.Write(p)
}

func (f *roundFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.fs.refuse("write", f.name, false); err != nil {
		n, werr := f.File.WriteAt(p[:len(p)/2], at)
		return n, errors.Join(err, werr)
	}
	return f.File.WriteAt(p, at)
}

func (f *roundFile) Preallocate(offset, n int64) error {
	if err := f.fs.refuse("fallocate", f.name, false); err != nil {
		return err
	}
	return f.File.Preallocate(offset, n)
}

func (f *roundFile) Sync() error {
	if err := f.fs.refuse("sync", f.name, true); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *roundFile) SyncData() error {
	if err := f.fs.refuse("sync", f.name, true); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *roundFile) SyncTo(length int64) (bool, error) {
	if err := f.fs.refuse("sync", f.name, true); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}

// fullRound is a store that compacts on a file system that may be full.
type fullRound struct {
	*rig
	fs    *roundFS
	disk  *vfs.MemFS
	cfg   Config
	moved int // segments that were emptied
	acked map[int]uint64
	err   error  // of what was not acknowledged; the round ends with it
	open  uint64 // the seed of the write whose outcome is not known
}

const fullRoundBlocks = 128

func newFullRound(t *testing.T, fs *roundFS) *fullRound {
	disk := vfs.NewCrashableMem()
	fs.FS = disk
	cfg := testConfig(fs)
	cfg.SegmentBytes, cfg.MemTableBytes, cfg.BlockCacheBytes, cfg.CacheBytes = 64*kib, 64<<10, 64<<10, 1
	cfg.Segment.CacheBytes = 1
	cfg.OnFailure = func(error) {}
	r := &fullRound{rig: newRig(t, cfg), fs: fs, disk: disk, cfg: cfg, acked: map[int]uint64{}}
	r.ok(openSession(1))
	for b := range fullRoundBlocks {
		r.put(b, uint64(1+b))
	}
	for b := 0; b < fullRoundBlocks; b += 2 { // half of what lies in the first segments is garbage
		r.put(b, uint64(100+b))
	}
	r.checkpoint()
	r.g.Log().Compact(r.index)
	return r
}

// put writes a block, one in each of many pages, and notes that it was acknowledged.
func (r *fullRound) put(b int, seed uint64) {
	if r.err != nil {
		return
	}
	res, err := r.tryPropose(r.write(storage.ExtentIndex(b), 0, blocks(seed, 1)))
	if err == nil && res[0].Kind != storage.KindNone {
		err = fmt.Errorf("%v: %s", res[0].Kind, res[0].Text)
	}
	if r.err = err; err == nil {
		r.acked[b] = seed
	} else {
		r.open = seed
	}
}

// try repeats what may be refused for want of room, as workers do.
func (r *fullRound) try(do func() error) {
	for r.err == nil {
		if r.err = do(); !errors.Is(r.err, storage.ErrNoSpace) || r.s.Failed() != nil {
			return
		}
		r.err = nil
		time.Sleep(time.Second)
	}
}

// round empties segments, stores that, uses them again, and writes on; several times, so that tables are flushed and compacted.
func (r *fullRound) round() {
	for i := range uint64(5) {
		for range 6 {
			r.try(func() error {
				no, err := r.compactOnce(context.Background(), false)
				if err == nil && no > 0 {
					r.moved++
				}
				return err
			})
		}
		r.try(r.tryCheckpoint)
		if r.err == nil {
			r.g.Log().Compact(r.g.Checkpointed().Index)
			r.s.worker.Recycle()
			r.s.log.GiveBack(2 * r.cfg.SegmentBytes) // so that some are made
		}
		for b := range fullRoundBlocks / 2 {
			r.put(2*b, 1000*(i+1)+uint64(b))
		}
	}
	r.try(r.tryCheckpoint)
}

// wantAll reads every block that was acknowledged.
func (r *fullRound) wantAll(when string) {
	r.t.Helper()
	for b, seed := range r.acked {
		got, _, err := readAt(r.g, op.HeadEpoch, storage.ExtentIndex(b), 0, storage.BlockSize)
		if err != nil || !bytes.Equal(got, blocks(seed, 1)) && !(r.open > 0 && bytes.Equal(got, blocks(r.open, 1))) {
			r.t.Fatalf("%s, %s: block %d is not what was acknowledged: %v", r.fs.what(), when, b, err)
		}
	}
}

// again opens the store that a power cut leaves.
func (r *fullRound) again() {
	r.t.Helper()
	r.fs.on.Store(false)
	cfg := r.cfg
	cfg.FS = r.disk.CrashClone(vfs.CrashCloneCfg{})
	r.s = openStore(r.t, cfg)
	r.recover()
	r.wantAll("after a power cut")
	if err := r.s.Close(); err != nil {
		r.t.Fatalf("%s: %v", r.fs.what(), err)
	}
	sound(r.t.(*testing.T), cfg.FS)
}

// TestCompactionWithoutRoom: a file system is full at each call of rounds of compaction that may want room, once, or from there on until
// there is some. Nothing is lost, the disk has not failed, and what waited goes on when there is room.
//
// Guards I1 and I6. Broken once each: prepareOne (segment/preparer.go) takes a lack of room for a failure, and this failed; attempt
// (tabledb/fs.go) does not insist, and this did not end.
func TestCompactionWithoutRoom(t *testing.T) {
	t.Parallel()
	for _, once := range []bool{true, false} {
		t.Run(map[bool]string{true: "once", false: "until there is room"}[once], func(t *testing.T) {
			// One of so many calls of a kind, more of the rare ones.
			for kind, step := range map[string]int64{"write": 17, "name": 5, "make": 3} {
				if testing.Short() {
					step *= 14
				}
				hits := 0
				for at := int64(1); ; at += step {
					fs := &roundFS{at: at, once: once, kind: kind}
					synctest.Test(t, func(t *testing.T) { compactWithoutRoom(t, fs) })
					if fs.hit.Load() == nil {
						break
					}
					hits++
				}
				t.Logf("%d calls of kind %s were refused", hits, kind)
				if hits == 0 || hits < 4 && !testing.Short() {
					t.Errorf("%d calls of kind %s were refused", hits, kind)
				}
			}
		})
	}
}

func compactWithoutRoom(t *testing.T, fs *roundFS) {
	r := newFullRound(t, fs)
	fs.on.Store(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.round()
	}()
	time.Sleep(2 * time.Minute) // what waits longer waits for the room
	if err := r.s.Failed(); err != nil {
		t.Fatalf("%s: the disk has failed: %v", fs.what(), err)
	}
	fs.on.Store(false)
	<-done
	if err := errors.Join(r.err, r.s.Failed()); err != nil {
		t.Fatalf("%s: there is room again, and %v", fs.what(), err)
	}
	time.Sleep(time.Minute)
	if s := r.s.Space(); s.Full() {
		t.Errorf("%s: there is room again, and the store says %+v", fs.what(), s)
	}
	if r.moved < 4 {
		t.Errorf("%s: %d segments were emptied", fs.what(), r.moved)
	}
	r.wantAll("with room again")
	r.round() // goes on
	if r.err != nil {
		t.Fatalf("%s: later: %v", fs.what(), r.err)
	}
	r.wantAll("later")
	r.wantLive()
	if err := r.s.Close(); err != nil {
		t.Fatalf("%s: %v", fs.what(), err)
	}
	r.again()
}

// TestCompactionOnBrokenDisk: a call of rounds of compaction fails: a write, or a sync, which fails the disk also if it reports a full
// file system, because nobody knows what became of the bytes. The process goes on, and after a power cut all that was acknowledged is
// there.
//
// Guards I1, with TestBrokenLog of package tabledb: in its fs.go, that a log that cannot be made, or a directory that cannot be synced,
// fails the database and not Pebble. It did not once, and the process ended.
func TestCompactionOnBrokenDisk(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name        string
		syncs       bool
		err         error
		long, short int64
	}{
		{"sync without room", true, syscall.ENOSPC, 5, 61},
		{"write", false, syscall.EIO, 17, 211},
	} {
		t.Run(tc.name, func(t *testing.T) {
			step := tc.long
			if testing.Short() {
				step = tc.short
			}
			failed := 0
			for at := int64(1); ; at += step {
				fs := &roundFS{at: at, once: true, syncs: tc.syncs, err: tc.err}
				if compactOnBrokenDisk(t, fs) {
					failed++
				}
				if fs.hit.Load() == nil {
					break
				}
			}
			if failed == 0 || failed < 20 && !testing.Short() {
				t.Errorf("%d calls failed the disk", failed)
			}
		})
	}
}

func compactOnBrokenDisk(t *testing.T, fs *roundFS) (failed bool) {
	r := newFullRound(t, fs)
	fs.on.Store(true)
	r.round()
	for deadline := time.Now().Add(10 * time.Second); r.err != nil && r.s.Failed() == nil; {
		if time.Now().After(deadline) { // who waited may hear of it first
			t.Fatalf("%s: the disk is well, and %v", fs.what(), r.err)
		}
		time.Sleep(time.Millisecond)
	}
	failed = r.s.Failed() != nil
	_ = r.s.Close() // a failed disk says so again
	r.again()
	return failed
}
