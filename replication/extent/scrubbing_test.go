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
	"github.com/storaged/storaged/replication/extent/scrub"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
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

// keep stores a value under the key of a page of volume 1, behind the back of the replica, which has it in memory no longer when the store
// is opened again.
func (r *scrubRig) keep(page table.PageKey, value func(key, value []byte) []byte) {
	r.t.Helper()
	key := table.AppendPageKey(nil, r.g.set.id, page, 1)
	was, err := r.s.db.Get(key)
	if err == nil && was == nil {
		err = storage.ErrNotFound
	}
	if err == nil {
		err = r.s.db.Commit(func(b *tabledb.Batch) { b.Set(key, value(key, was)) })
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestScrubAroundADamagedPage: a page of the tables that is damaged is counted, once, and the rest of the pass goes on: bad blocks of
// pages behind it are mended, also one that only the tables lead to, and no segment counts as damaged for it.
//
// Guards: soundBlocks in Check; removed once, and block 1 was not mended.
func TestScrubAroundADamagedPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 2)
		r.put(130, 130) // the third page
		r.put(3, 4)
		r.put(200, 200) // the fourth one
		r.settle()
		r.put(131, 131)
		r.put(4, 4)
		r.settle()
		one, behind, damaged := r.at(1, 1), r.at(200, 1), r.at(130, 1)
		if one.Segment != damaged.Segment {
			t.Fatalf("block 1 lies at %s, 130 at %s: they are to share a segment", one.Position(), damaged.Position())
		}
		r.rot(one)
		r.rot(behind)
		r.behead(behind)
		r.keep(table.PageKey{Volume: 1, Page: 2}, func(_, value []byte) []byte { return append(value[:len(value)-4:len(value)-4], 1, 2, 3, 4) })
		r.begin(cfg, time.Hour)
		time.Sleep(30 * time.Minute)
		r.wantAll(130, 131)
		got := r.s.Scrub()
		if got.LastPass.IsZero() || got.DamagedPages != 1 || got.MendedBlocks != 2 || got.LostBlocks != 0 {
			t.Errorf("%+v", got)
		}
		if _, _, err := readAt(r.g, op.HeadEpoch, 0, 130*storage.BlockSize, storage.BlockSize); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("a block of the damaged page is read: %v", err)
		}
	})
}

// TestScrubPastUnreadableTables: where the database does not give back a block of its own, with many pages, the pass goes on behind it, and
// finds there what is damaged; no segment is emptied for it.
//
// Guards: pastDamage, both its loops; with next = nil block 0 of the last extent stayed as it was.
func TestScrubPastUnreadableTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const extents, maxLost = 4000, 100
		cfg := testConfig(memFS(t))
		cfg.Segment.CacheBytes = 1
		cfg.SegmentBytes = 4 << 20
		r := &scrubRig{rig: newRig(t, cfg), gone: map[int]error{}, want: map[int][]byte{}}
		r.ok(openSession(1))
		data := blocks(1, 1)
		var ops []request
		for x := range storage.ExtentIndex(extents) {
			ops = append(ops, r.write(x, 0, data))
		}
		for part := range slices.Chunk(ops, 100) {
			r.propose(part...)
		}
		r.settle()
		var last [1]table.Entry
		if err := r.g.lookup(1, extents-1, op.HeadEpoch, 0, last[:]); err != nil {
			t.Fatal(err)
		}
		r.ok(r.write(extents, 0, blocks(2, 1)))
		for range 1024 { // so that the last block is in a sealed segment
			r.ok(r.write(extents, 0, blocks(2, 1)))
		}
		r.settle()
		r.reopen(cfg) // what the database's log had is in a file of tables
		r.damageTables()
		r.rot(last[0])
		r.behead(last[0]) // only the tables lead there
		reached, all := 0, map[segment.SegmentNo]struct{}{}
		for _, i := range r.s.log.Segments() {
			all[i.No] = struct{}{}
		}
		for from := []byte{table.KeyPage}; from != nil; {
			var f scrub.Found
			pages, next, err := scrubbing{r.s}.scanPages(&f, from, all)
			if err != nil {
				t.Fatal(err)
			}
			reached, from = reached+len(pages[r.g.set.id]), next
		}
		t.Logf("%d of %d pages are reached", reached, extents+1)
		if lost := extents + 1 - reached; lost < 1 || lost > maxLost {
			t.Errorf("%d pages of %d are lost with one block", lost, extents+1)
		}
		cfg.ScrubInterval = time.Hour
		r.reopen(cfg)
		r.s.MendFrom(func(_ context.Context, _ segment.GroupKey, _ Unreadable, dst []byte) error {
			copy(dst, data)
			return nil
		})
		time.Sleep(30 * time.Minute)
		got := r.s.Scrub()
		if got.LastPass.IsZero() || got.DamagedPages == 0 || got.DamagedPages > 3 || got.MendedBlocks != 1 || got.DamagedSegments != 1 {
			t.Errorf("%+v", got)
		}
		r.wantRead(extents-1, 0, data)
	})
}

// damageTables changes a byte in the middle of the largest file of tables.
func (r *scrubRig) damageTables() {
	r.t.Helper()
	if err := r.s.Close(); err != nil {
		r.t.Fatal(err)
	}
	fs, dir := r.s.cfg.FS, storedir.TablesDir(r.s.cfg.FS, testDir)
	names, err := fs.List(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	var largest string
	var size int64
	for _, name := range names {
		info, err := fs.Stat(fs.PathJoin(dir, name))
		if err == nil && strings.HasSuffix(name, ".sst") && info.Size() > size {
			largest, size = fs.PathJoin(dir, name), info.Size()
		}
	}
	f, err := fs.OpenReadWrite(largest, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.WriteAt([]byte("rotten"), size/2)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.s = openStore(r.t, r.s.cfg)
	r.recover()
}

// TestScrubBelievesTheTable: a record that is sound and not what the table says is damage, too: the block is brought from elsewhere.
//
// Guards I5: Check's comparison of a sound record's sum with the table's; removed once, and nothing was found.
func TestScrubBelievesTheTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 8)
		r.settle()
		r.want[2] = blocks(99, 1) // the write of which this disk has not kept
		r.keep(table.PageKey{Volume: 1}, func(key, value []byte) []byte {
			var p table.Page
			if err := p.Decode(key, value); err != nil {
				t.Fatal(err)
			}
			p.Entries[2].Sum = op.Sum(r.want[2])
			return p.AppendValue(nil, key, p.Indexed)
		})
		r.begin(cfg, time.Hour)
		time.Sleep(10 * time.Minute)
		if got, n := r.s.Scrub(), r.s.scrubber.Counts(); got.MendedBlocks != 1 || n.Found != 1 || n.DamagedRecords != 0 {
			t.Errorf("%+v, %+v", got, n)
		}
		r.wantAll()
	})
}

// TestScrubOfAnOverwrittenBlock: a block that is overwritten between being found and being looked at is not damaged, whatever lies there.
//
// Guards: look's refersTo; removed once, and the block was bad.
func TestScrubOfAnOverwrittenBlock(t *testing.T) {
	cfg := scrubConfig(t)
	r := newScrubRig(t, cfg, 8)
	r.settle()
	for _, b := range []int{1, 2} {
		r.rot(r.at(b, 1))
	}
	no := r.at(1, 1).Segment
	if r.at(2, 1).Segment != no {
		t.Fatal("blocks 1 and 2 are to share a segment")
	}
	overwritten := false
	f, err := scrubbing{r.s}.Check(no, func(n int64) error {
		if n == storage.BlockSize && !overwritten {
			overwritten = true
			r.put(1, 50)
		}
		return nil
	})
	if err != nil || !overwritten || len(f.Bad) != 1 || f.Bad[0].BlockNo() != 2 {
		t.Errorf("overwritten: %v; found %+v, %v", overwritten, f, err)
	}
}
