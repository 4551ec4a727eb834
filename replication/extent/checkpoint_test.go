package extent

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// stall holds back syncs of the segment log while it is on.
type stall struct {
	on   atomic.Bool
	open chan struct{}
}

func (s *stall) String() string { return "stall" }

func (s *stall) MaybeError(o errorfs.Op) error {
	if s.on.Load() && isSync(o) && strings.Contains(o.Path, "/"+"log"+"/") {
		<-s.open
	}
	return nil
}

// Guards I1 and I7: Persist's wait for the log. Removed once; this test failed.
func TestPersistWaitsForTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &stall{open: make(chan struct{})}
		cfg := testConfig(errorfs.Wrap(vfs.NewCrashableMem(), st))
		s := openStore(t, cfg)
		defer s.Close()
		g, err := s.CreateGroup(testKey)
		if err != nil {
			t.Fatal(err)
		}
		st.on.Store(true)
		data := openSession(1).data()
		if _, err := g.Log().Append([]segment.Entry{{Index: 1, Term: 1, Data: data}}); err != nil {
			t.Fatal(err)
		}
		g.Apply([]ApplyEntry{{Index: 1, Term: 1, IsCommand: true, Data: data}})
		f, err := g.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Release()
		done := make(chan error, 1)
		go func() { done <- f.Persist(1, 1, nil, 0) }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("persisted before the log was durable: %v", err)
			done <- err
		default:
		}
		if c := g.Checkpointed(); c.Index != 0 {
			t.Errorf("checkpoint %+v", c)
		}
		st.on.Store(false)
		close(st.open)
		if err := <-done; err != nil || g.Checkpointed().Index != 1 {
			t.Errorf("%v, %+v", err, g.Checkpointed())
		}
	})
}

// Guards I1: a frozen page is copied before it changes (cache.writable). Removed once; this test failed.
func TestFrozenDoesNotChange(t *testing.T) {
	disk := memFS(t)
	cfg := testConfig(disk)
	r := newRig(t, cfg)
	r.ok(openSession(1))
	a := blocks(1, 4)
	r.ok(r.write(0, 0, a))
	f, err := r.g.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.g.Freeze(); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("two at once: %v", err)
	}
	r.ok(r.clear(0, 4096, 4096))
	r.ok(r.write(0, 8192, blocks(2, 4)))
	if err := f.Persist(2, 1, nil, 0); err != nil {
		t.Fatal(err)
	}
	f.Release()
	if err := checkLive(r.g); err != nil {
		t.Error(err)
	}
	cfg.FS = disk.CrashClone(vfs.CrashCloneCfg{})
	s := openStore(t, cfg)
	defer s.Close()
	got, _, err := readAt(s.Group(testKey), op.HeadEpoch, 0, 0, uint32(len(a)))
	if err != nil || string(got) != string(a) {
		t.Errorf("the checkpoint holds what came after it: %v", err)
	}
}

// A checkpoint that is due is asked for once, and what makes it due is counted anew by Freeze.
func TestCheckpointDue(t *testing.T) {
	cfg := testConfig(memFS(t))
	cfg.CheckpointBytes = 64 * kib
	asked := 0
	cfg.OnCheckpointDue = func(segment.GroupKey) { asked++ }
	r := newRig(t, cfg)
	r.ok(openSession(1))
	for i := range uint32(20) {
		r.ok(r.write(0, i*4096, blocks(1, 1)))
	}
	if asked != 1 || !r.g.CheckpointDue() {
		t.Errorf("asked %d times", asked)
	}
	r.checkpoint()
	if r.g.CheckpointDue() {
		t.Error("still due")
	}
}

func TestSpace(t *testing.T) {
	disk := memFS(t)
	disk.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1 << 20})
	cfg := testConfig(disk)
	cfg.ReserveBytes = 8 << 20
	r := newRig(t, cfg)
	if s := r.s.Space(); s.CapacityBytes != 1<<30 || s.FreeBytes < 1<<20 || s.FreeBytes > 3<<20 || !s.Full() {
		t.Errorf("%+v", s)
	}
	cfg = testConfig(memFS(t))
	cfg.CapacityBytes, cfg.ReserveBytes = 64<<20, 1<<20
	r = newRig(t, cfg)
	if s := r.s.Space(); s.CapacityBytes != 64<<20 || s.FreeBytes < 60<<20 || s.FreeBytes >= 64<<20 || s.Full() {
		t.Errorf("%+v", s)
	}
}

// sorted is a batch that notes which keys were set, of each kind.
type sorted map[byte][][]byte

func (s sorted) Set(key, _ []byte) { s[key[0]] = append(s[key[0]], bytes.Clone(key)) }

func (s sorted) Delete(key []byte) { s.Set(key, nil) }

// TestCheckpointIsSorted: a checkpoint hands Pebble the keys of each kind in ascending order, whatever was written first: each finds its place
// beside the one before. In random order a large checkpoint held up the one processor of a small node for as long as it took.
//
// Guards the order of pages in Frozen.fill, and that of live counts in tableset.SetLive. Each was taken out once, and failed here.
func TestCheckpointIsSorted(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	r.ok(openSession(1))
	const extents, pages = 64, 3
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(extents * pages) {
		offset := uint32(i%pages) * table.BlocksPerPage * storage.BlockSize
		r.ok(r.write(storage.ExtentIndex(i/pages), offset, blocks(1, 8)))
	}
	for x := range storage.ExtentIndex(extents) { // as after a snapshot
		w := r.write(x, 0, blocks(2, 1))
		w.o.Epoch = 2
		r.ok(w)
	}
	f, err := r.g.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	b := sorted{}
	f.fill(b, &table.GroupRecord{Set: f.set.id}, true)
	for kind, least := range map[byte]int{table.KeyPage: extents * (pages + 1), table.KeyIndex: extents, table.KeyLive: 16} {
		if n := len(b[kind]); n < least {
			t.Errorf("%d keys of kind %q, want %d at least: the test shows nothing of them", n, kind, least)
		}
		if !slices.IsSortedFunc(b[kind], bytes.Compare) {
			t.Errorf("the keys of kind %q are not in order", kind)
		}
	}
}
