package extent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/op"
)

const (
	propExtents = 2
	propBlocks  = 140 // of each extent, over three pages
)

// TestAgainstModel drives a store and a plain model with the same random commands.
//
// Beside TestExactlyOnceAndFencing (table) it guards the line in table/volume.go that finds a number applied (I3): it was removed
// once, and this test failed. rapid prints the seed of a failure.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fs := vfs.NewCrashableMem()
		cfg := testConfig(fs)
		d := &driver{rt: rt, fs: fs, m: newModel(), r: &rig{t: t, s: openStore(t, cfg), term: 1}, lastSeq: map[storage.SessionID]uint64{}}
		d.cfg = cfg
		defer func() { _ = d.r.s.Close() }()
		g, err := d.r.s.CreateGroup(testKey)
		if err != nil {
			rt.Fatal(err)
		}
		d.r.g = g
		d.shrink()
		d.apply(rt, openSession(1))
		rt.Repeat(map[string]func(*rapid.T){
			"write":      d.write,
			"write2":     d.write,
			"clear":      d.clear,
			"again":      d.again,
			"session":    d.session,
			"epoch":      d.epoch,
			"generation": d.generation,
			"checkpoint": d.checkpoint,
			"freeze":     d.freeze,
			"persist":    d.persist,
			"release":    d.release,
			"restart":    d.restart,
			"power cut":  d.powerCut,
			"delete":     d.delete,
			"format":     d.format,
			"move":       d.move,
			"compact":    d.compact,
			"term":       func(*rapid.T) { d.r.term++ },
			"":           d.check,
		})
		if err := d.m.compare(d.r.g, propExtents, propBlocks); err != nil {
			rt.Fatal(err)
		}
	})
}

// shrink makes the cache so small that pages come and go.
func (d *driver) shrink() { d.r.s.cached.Set(2, 2) }

type driver struct {
	rt      *rapid.T
	fs      *vfs.MemFS
	cfg     Config
	r       *rig
	m       *model
	lastSeq map[storage.SessionID]uint64
	sent    []request
	frozen  *Frozen
	frozeAt [2]uint64
	seed    uint64
}

func (d *driver) apply(rt *rapid.T, q request) {
	d.sent = append(d.sent, q)
	kind, dup := d.m.apply(q, d.r.term)
	res, err := d.r.tryPropose(q)
	if err != nil {
		rt.Fatal(err)
	}
	if kind == storage.KindNone && !dup && q.o.Seq > 0 {
		d.lastSeq[q.o.Session+storage.SessionID(q.o.Volume)*100] = q.o.Seq
	}
	if res[0].Kind != kind || res[0].Duplicate != dup {
		rt.Fatalf("%+v: %v duplicate %v (%s), want %v duplicate %v", q.o, res[0].Kind, res[0].Duplicate, res[0].Text, kind, dup)
	}
}

func (d *driver) mutation(rt *rapid.T, kind op.Kind) request {
	session := storage.SessionID(rapid.Uint64Range(1, 6).Draw(rt, "session"))
	volume := storage.VolumeID(rapid.SampledFrom([]uint64{1, 1, 1, 2}).Draw(rt, "volume"))
	if v := d.m.volumes[volume]; v != nil && len(v.live) > 0 && rapid.IntRange(0, 9).Draw(rt, "live") > 0 {
		live := slices.Sorted(maps.Keys(v.live))
		session = live[rapid.IntRange(0, len(live)-1).Draw(rt, "which")]
	}
	// Numbers of refused requests are used again, and some are left for later.
	key := session + storage.SessionID(volume)*100
	seq := d.lastSeq[key] + 1
	if rapid.IntRange(0, 19).Draw(rt, "skip") == 0 {
		seq += rapid.SampledFrom([]uint64{1, 2, 30, 1023, 1024}).Draw(rt, "ahead")
	}
	v := d.m.volumes[volume]
	o := op.Op{Kind: kind, Volume: volume, Extent: storage.ExtentIndex(rapid.IntRange(0, propExtents-1).Draw(rt, "extent")), Session: session, Seq: seq, Epoch: 1, Generation: 1}
	if v != nil {
		o.Epoch = max(1, v.epoch) - storage.Epoch(rapid.SampledFrom([]int{0, 0, 0, 0, 0, 1}).Draw(rt, "old epoch"))
		o.Generation = max(1, v.generation) - storage.Generation(rapid.SampledFrom([]int{0, 0, 0, 0, 0, 1}).Draw(rt, "old generation"))
	}
	o.ReadTerm = rapid.SampledFrom([]uint64{0, 0, 0, 0, d.r.term, d.r.term, d.r.term - 1}).Draw(rt, "read term")
	first := rapid.IntRange(0, propBlocks-1).Draw(rt, "first")
	n := rapid.IntRange(1, min(20, propBlocks-first)).Draw(rt, "n")
	o.Offset, o.Length = uint32(first*storage.BlockSize), uint32(n*storage.BlockSize)
	return request{o: o}
}

func (d *driver) write(rt *rapid.T) {
	q := d.mutation(rt, op.Write)
	d.seed++
	q.payload = blocks(d.seed, int(q.o.Length)/storage.BlockSize)
	q.o.Sums = op.AppendSums(nil, q.o.Offset, q.payload)
	d.apply(rt, q)
}

func (d *driver) clear(rt *rapid.T) { d.apply(rt, d.mutation(rt, op.Clear)) }

// again sends an old request again, as a gateway does that lost the answer, or a socket that held it for long.
func (d *driver) again(rt *rapid.T) {
	if len(d.sent) > 0 {
		q := d.sent[rapid.IntRange(max(0, len(d.sent)-20), len(d.sent)-1).Draw(rt, "which")]
		d.apply(rt, q)
	}
}

func (d *driver) session(rt *rapid.T) {
	q := d.mutation(rt, rapid.SampledFrom([]op.Kind{op.OpenSession, op.OpenSession, op.OpenSession, op.CloseSession}).Draw(rt, "kind"))
	q.o.Offset, q.o.Length, q.o.Seq = 0, 0, 0
	if q.o.Kind == op.OpenSession {
		q.o.Session = storage.SessionID(rapid.IntRange(1, 40).Draw(rt, "id"))
	}
	if q.o.Kind == op.CloseSession && rapid.IntRange(0, 9).Draw(rt, "many") == 0 {
		q.o.Session += 20
	}
	d.apply(rt, q)
}

func (d *driver) epoch(rt *rapid.T) {
	d.apply(rt, request{o: op.Op{Kind: op.SetEpoch, Volume: 1, Epoch: storage.Epoch(rapid.IntRange(1, 4).Draw(rt, "epoch"))}})
}

// format has pages written by epoch from now on: whatever there is before, the other form or none.
func (d *driver) format(rt *rapid.T) {
	if err := d.r.s.RaiseFormat(storedir.NewestFormat); err != nil {
		rt.Fatal(err)
	}
}

func (d *driver) generation(rt *rapid.T) {
	d.apply(rt, request{o: op.Op{Kind: op.SetGeneration, Volume: 1, Generation: storage.Generation(rapid.IntRange(1, 3).Draw(rt, "generation"))}})
}

func (d *driver) delete(rt *rapid.T) {
	if rapid.IntRange(0, 9).Draw(rt, "really") == 0 {
		d.apply(rt, request{o: op.Op{Kind: op.DeleteVolume, Volume: storage.VolumeID(rapid.IntRange(1, 2).Draw(rt, "volume"))}})
	}
}

// move copies some blocks of volume 1, of any version, and re-points them: nobody sees a difference.
func (d *driver) move(rt *rapid.T) {
	x := storage.ExtentIndex(rapid.IntRange(0, propExtents-1).Draw(rt, "extent"))
	epoch := storage.Epoch(rapid.IntRange(1, 5).Draw(rt, "epoch"))
	first := rapid.IntRange(0, propBlocks-1).Draw(rt, "first")
	defer d.r.s.live.HoldFrom(d.r.s.log.Durable().Segment())()
	var moves []Move
	for b := first; b < min(first+rapid.IntRange(1, 70).Draw(rt, "n"), propBlocks); b++ {
		m, ok, err := d.r.copied(x, b, epoch)
		if err != nil {
			rt.Fatal(err)
		}
		if ok {
			moves = append(moves, m)
		}
	}
	if _, err := d.r.g.Repoint(d.r.g.set.id, moves); err != nil {
		rt.Fatal(err)
	}
}

// compact moves what lives in the oldest segment that may be emptied, as its records or as the tables say.
func (d *driver) compact(rt *rapid.T) {
	sweep, deleted := rapid.Bool().Draw(rt, "sweep"), false
	for _, v := range d.m.volumes {
		deleted = deleted || v.deleted
	}
	no, err := d.r.compactOnce(context.Background(), sweep)
	if deleted && errors.Is(err, storage.ErrNotFound) { // its tables, and then its segments, go beside this
		return
	}
	// A sweep does not see what was moved since the last checkpoint, and what is deleted is not moved.
	if err == nil && no != 0 && !sweep && !deleted && d.r.s.live.References(no) != 0 {
		err = fmt.Errorf("segment %d still has %d references", no, d.r.s.live.References(no))
	}
	if err != nil {
		rt.Fatal(err)
	}
}

func (d *driver) checkpoint(rt *rapid.T) {
	if d.frozen != nil {
		return
	}
	if err := d.r.tryCheckpoint(); err != nil {
		rt.Fatal(err)
	}
}

func (d *driver) freeze(rt *rapid.T) {
	if d.frozen != nil {
		return
	}
	f, err := d.r.g.Freeze()
	if err != nil {
		rt.Fatal(err)
	}
	d.frozen = f
	d.frozeAt[0], d.frozeAt[1] = d.r.g.Applied()
}

func (d *driver) persist(rt *rapid.T) {
	if d.frozen == nil {
		return
	}
	if d.frozeAt[0] > 0 {
		if err := d.frozen.Persist(d.frozeAt[0], d.frozeAt[1], nil, 0); err != nil {
			rt.Fatal(err)
		}
	}
	d.release(rt)
}

func (d *driver) release(*rapid.T) {
	if d.frozen != nil {
		d.frozen.Release()
		d.frozen = nil
	}
}

func (d *driver) restart(rt *rapid.T) {
	d.release(rt)
	d.r.reopen(d.cfg)
	d.shrink()
}

func (d *driver) powerCut(rt *rapid.T) {
	d.release(rt)
	fs := d.fs.CrashClone(vfs.CrashCloneCfg{})
	_ = d.r.s.Close()
	d.fs, d.cfg.FS = fs, fs
	d.r.s = openStore(d.r.t, d.cfg)
	d.r.recover()
	d.shrink()
}

func (d *driver) check(rt *rapid.T) {
	if rapid.IntRange(0, 3).Draw(rt, "check") > 0 {
		return
	}
	if err := d.m.compare(d.r.g, propExtents, propBlocks); err != nil {
		rt.Fatal(err)
	}
	for v := range storage.VolumeID(2) {
		if err := checkMapped(d.r.g, v+1, propExtents); err != nil {
			rt.Fatal(err)
		}
	}
	d.r.g.commitMu.Lock() // no purge meanwhile
	defer d.r.g.commitMu.Unlock()
	if err := checkLive(d.r.g); err != nil {
		rt.Fatal(err)
	}
}
