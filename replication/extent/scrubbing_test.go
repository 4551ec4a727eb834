package extent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// scrubRig is a store whose blocks have a second copy elsewhere.
type scrubRig struct {
	*rig
	want map[int][]byte // by block

	mu    sync.Mutex // guards what follows
	gone  map[int]error
	asked []int
}

// lose has the other replicas answer so for a block; nil: they have it.
func (r *scrubRig) lose(block int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone[block] = err
}

// asks returns for which blocks the other replicas were asked, in order.
func (r *scrubRig) asks() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.asked))
}

func newScrubRig(t *testing.T, cfg Config, n int) *scrubRig {
	r := &scrubRig{rig: newRig(t, cfg), gone: map[int]error{}, want: map[int][]byte{}}
	r.ok(openSession(1))
	for i := range n {
		r.put(i, uint64(i+1))
	}
	r.s.MendFrom(r.source)
	return r
}

// put writes a block.
func (r *scrubRig) put(block int, seed uint64) {
	r.t.Helper()
	r.want[block] = blocks(seed, 1)
	r.ok(r.write(0, uint32(block)*storage.BlockSize, r.want[block]))
}

func (r *scrubRig) source(_ context.Context, key segment.GroupKey, u Unreadable, dst []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, u.Block)
	if key != testKey || u.Volume != 1 || u.Extent != 0 || u.Err == nil || u.Sum != op.Sum(r.want[u.Block]) {
		r.t.Errorf("asked for %+v of %s", u, key)
	}
	copy(dst, r.want[u.Block])
	return r.gone[u.Block]
}

// settle has what was written checkpointed, and no log need any segment.
func (r *scrubRig) settle() {
	r.t.Helper()
	r.checkpoint()
	r.g.Log().Compact(r.index)
}

// damage writes bytes over a segment, on the disk.
func (r *scrubRig) damage(no segment.SegmentNo, at int64, bytes []byte) {
	r.t.Helper()
	f, err := r.s.cfg.FS.OpenReadWrite(fmt.Sprintf("%s/log/%010d.seg", testDir, no), vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.WriteAt(bytes, at)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// begin opens the store again with passes.
func (r *scrubRig) begin(cfg Config, interval time.Duration) {
	r.t.Helper()
	cfg.ScrubInterval = interval
	r.reopen(cfg)
	r.s.MendFrom(r.source)
}

// behead damages the header of the record that an entry of the tables lies in, which has one block.
func (r *scrubRig) behead(e table.Entry) {
	head := 64 + 16 + op.HeaderLen(op.Write, 1)
	r.damage(e.Segment, int64(e.Offset)-int64(head), make([]byte, 64))
}

func (r *scrubRig) wantAll(but ...int) {
	r.t.Helper()
	for i, want := range r.want {
		if !slices.Contains(but, i) {
			r.wantRead(0, uint32(i)*storage.BlockSize, want)
		}
	}
}

func scrubConfig(t *testing.T) Config {
	cfg := moveConfig(t)
	cfg.Segment.CacheBytes = 1
	return cfg
}

// TestScrub: a pass finds what nobody reads. Blocks that are damaged are mended once each: also one whose record has no header any more, which
// only the tables lead to. Damage in garbage asks nobody. A block that no replica has is lost: it is listed, reads of it fail, and nothing
// is put in its place. What was damaged is gone when its segments are recycled, and the store is sound.
//
// Guards I5. Each was removed once, and this failed: Check's look at the blocks of damaged records; Doubtful (block 70 stayed bad); the order
// of Sealed; the Lost outcome for KindIO; Empty (check found damage); check's unneeded.
func TestScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 12)
		garbage := r.at(0, 1)
		r.put(0, 100)
		r.put(70, 70) // alone in its page: no other record leads there
		r.ok(r.write(1, 0, blocks(101, 2)))
		r.ok(r.write(1, 0, blocks(103, 2)))
		r.settle()
		five, seventy, nine := r.at(5, 1), r.at(70, 1), r.at(9, 1)
		for _, e := range []table.Entry{garbage, five, seventy, nine} {
			r.rot(e)
		}
		r.behead(seventy)
		r.lose(9, storage.E("read copy", storage.KindIO, "group 1", nil))
		r.begin(cfg, time.Hour)
		time.Sleep(30 * time.Minute)
		r.wantAll(9)
		if asked := r.asks(); len(asked) > 8 || !slices.Equal(slices.Compact(asked), []int{5, 9, 70}) {
			t.Errorf("asked in half an hour for %v", r.asks())
		}
		if a, b := r.at(5, 1), r.at(70, 1); a.Position() == five.Position() || b.Position() == seventy.Position() || a.Sum != five.Sum || b.Sum != seventy.Sum {
			t.Errorf("they lie at %v and %v, lay at %v and %v", a, b, five, seventy)
		}
		if _, _, err := readAt(r.g, op.HeadEpoch, 0, 9*storage.BlockSize, storage.BlockSize); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("a lost block is read: %v", err)
		}
		got, counts := r.s.Scrub(), r.s.scrubber.Counts()
		if got.MendedBlocks != 2 || got.LostBlocks != 1 || got.WaitingBlocks != 0 || len(got.Lost) != 1 || got.LastPass.IsZero() ||
			got.Lost[0] != (storage.LostBlock{Group: 1, Volume: 1, Extent: 0, Block: 9}) || counts.Found != 3 || counts.DamagedRecords != 3 || counts.StrayBytes == 0 {
			t.Errorf("report %+v, counts %+v", got, counts)
		}
		r.put(9, 102)
		for range 4 {
			time.Sleep(10 * time.Minute)
			r.settle()
		}
		if got := r.s.Scrub(); got.LostBlocks != 0 || got.DamagedSegments != 0 || got.MendedBlocks != 2 {
			t.Errorf("after it was overwritten: %+v", got)
		}
		r.wantAll()
		r.wantLive()
		if err := r.s.Close(); err != nil {
			t.Fatal(err)
		}
		sound(t, cfg.FS)
	})
}

// TestScrubWaitsForAReplica: a block is not lost while somebody may have it, and is mended when that one is back; a replica that has other
// bytes there mends nothing.
//
// Guards I5: Later for other kinds than KindIO (removed once: the block was lost), mend's comparison with the sum.
func TestScrubWaitsForAReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 8)
		r.settle()
		r.rot(r.at(2, 1))
		r.lose(2, storage.E("read copy", storage.KindUnavailable, "group 1", nil))
		r.begin(cfg, time.Hour)
		time.Sleep(time.Minute)
		if got := r.s.Scrub(); got.WaitingBlocks != 1 || got.LostBlocks != 0 {
			t.Errorf("%+v", got)
		}
		r.lose(2, nil)
		right := r.want[2]
		r.s.MendFrom(func(_ context.Context, _ segment.GroupKey, _ Unreadable, dst []byte) error {
			copy(dst, blocks(77, 1))
			return nil
		})
		time.Sleep(time.Minute)
		if got := r.s.Scrub(); got.WaitingBlocks != 1 || got.MendedBlocks != 0 {
			t.Errorf("with other bytes: %+v", got)
		}
		r.s.MendFrom(r.source)
		time.Sleep(time.Minute)
		if got := r.s.Scrub(); got.WaitingBlocks != 0 || got.MendedBlocks != 1 {
			t.Errorf("%+v", got)
		}
		r.wantRead(0, 2*storage.BlockSize, right)
	})
}

// TestScrubGoesOn: a start goes on where the pass was, and looks again at once at what was not mended. A file that says nonsense
// costs a pass.
//
// Guards: load; removed once, and the second start waited for the next pass.
func TestScrubGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 8)
		r.settle()
		r.rot(r.at(2, 1))
		r.lose(2, storage.E("read copy", storage.KindUnavailable, "group 1", nil))
		r.begin(cfg, 1000*time.Hour)
		time.Sleep(time.Minute)
		last := r.s.Scrub().LastPass
		if last.IsZero() {
			t.Fatal("no pass has ended")
		}
		r.begin(cfg, 1000*time.Hour)
		time.Sleep(time.Minute)
		if got := r.s.Scrub(); !got.LastPass.Equal(last) || got.WaitingBlocks != 1 {
			t.Errorf("after a start: %+v, the last pass ended %v", got, last)
		}
		r.lose(2, nil)
		time.Sleep(time.Minute)
		r.wantAll()
		f, err := cfg.FS.Create(testDir+"/scrub.json", vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.Write([]byte(strings.Repeat("{", 100)))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		r.begin(cfg, 1000*time.Hour)
		time.Sleep(time.Minute)
		if got := r.s.Scrub(); !got.LastPass.After(last) {
			t.Errorf("after nonsense: %+v", got)
		}
	})
}

// TestCompactionAsksTheScrub: without passes, too, a block at which compaction stops is mended, and its segment emptied and recycled.
//
// Guards I6: readRun's Ask; removed once, and the segment stayed.
func TestCompactionAsksTheScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 8)
		r.settle()
		bad := r.at(0, 1)
		r.rot(bad)
		time.Sleep(time.Minute)
		if n := r.s.scrubber.Counts().Bytes; n != 0 || len(r.asks()) != 0 {
			t.Errorf("it is off, and read %d bytes", n)
		}
		if no, err := r.compactOnce(t.Context(), false); no != bad.Segment || err == nil {
			t.Fatalf("segment %d: %v", no, err)
		}
		for range 3 {
			time.Sleep(time.Minute)
			r.settle()
		}
		r.wantAll()
		if n := r.s.live.References(bad.Segment); n != 0 {
			t.Errorf("%d blocks still lie in its segment", n)
		}
		if err := r.s.Close(); err != nil {
			t.Fatal(err)
		}
		sound(t, cfg.FS)
	})
}

// TestReadAsksTheScrub: what a client could not read is listed as lost.
func TestReadAsksTheScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 8)
		r.settle()
		r.rot(r.at(3, 1))
		r.lose(3, storage.E("read copy", storage.KindIO, "group 1", nil))
		if _, _, err := readAt(r.g, op.HeadEpoch, 0, 3*storage.BlockSize, storage.BlockSize); !errors.Is(err, storage.ErrCorrupt) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := r.s.Scrub(); got.LostBlocks != 1 {
			t.Errorf("%+v", got)
		}
	})
}
