package extent

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/check"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
)

// catalogVolume is a volume as a small model of the catalog knows it.
type catalogVolume struct {
	id         storage.VolumeID
	deleting   bool
	gone       bool // the deletion is finished: the catalog has forgotten it
	dead       bool // the group has deleted its part
	generation storage.Generation
	sessions   []storage.SessionID
	seq        map[storage.SessionID]uint64
}

// forgetWorld is a catalog that gives out volumes and sessions and deletes volumes, a group, and what is on its way between
// them: every request may arrive late, twice, or not at all.
type forgetWorld struct {
	t           *rapid.T
	r           *rig
	cfg         Config
	index       uint64 // of the catalog's last command
	lastSession storage.SessionID
	volumes     []*catalogVolume
	onTheirWay  []onItsWay
}

type onItsWay struct {
	v *catalogVolume
	q request
}

func (w *forgetWorld) pick(what string, ok func(*catalogVolume) bool) *catalogVolume {
	var some []*catalogVolume
	for _, v := range w.volumes {
		if ok(v) {
			some = append(some, v)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return rapid.SampledFrom(some).Draw(w.t, what)
}

// send puts a request on its way, and may deliver it at once. It returns the answer then.
func (w *forgetWorld) send(v *catalogVolume, o op.Op, payload []byte) (op.Result, bool) {
	o.Volume = v.id
	x := onItsWay{v, request{o, payload}}
	w.onTheirWay = append(w.onTheirWay, x)
	if rapid.Bool().Draw(w.t, "at once") {
		return w.deliver(x), true
	}
	return op.Result{}, false
}

// deliver applies a request, and fails if it did anything to a volume that is deleted.
func (w *forgetWorld) deliver(x onItsWay) op.Result {
	res := w.r.propose(x.q)[0]
	applied := res.Kind == storage.KindNone && !res.Duplicate
	switch {
	case applied && x.q.o.Kind == op.DeleteVolume && !x.v.gone:
		x.v.dead = true
	case applied && (x.v.gone || x.v.dead):
		w.t.Fatalf("%+v was applied to volume %d: %+v", x.q.o, x.v.id, *x.v)
	}
	if _, known := w.r.g.Volume(x.v.id); known && x.v.gone {
		w.t.Fatalf("%+v made volume %d, which is deleted, known again", x.q.o, x.v.id)
	}
	return res
}

func (w *forgetWorld) must(res op.Result, delivered bool, what string, v *catalogVolume) {
	if delivered && (res.Kind != storage.KindNone || res.Duplicate) {
		w.t.Fatalf("%s of volume %d, which is there, is refused: %+v", what, v.id, res)
	}
}

// deletion runs the catalog leader's task, to its end or to an interruption.
func (w *forgetWorld) deletion(v *catalogVolume, whole bool) {
	at, session := w.index, w.lastSession
	cut := 9
	if !whole {
		cut = rapid.IntRange(0, 5).Draw(w.t, "interrupted")
	}
	del := onItsWay{v, request{o: op.Op{Kind: op.DeleteVolume, Volume: v.id, Seq: at}}}
	w.onTheirWay = append(w.onTheirWay, del)
	if cut == 0 {
		return
	}
	if res := w.deliver(del); res.Kind != storage.KindNone && res.Kind != storage.KindNotFound {
		w.t.Fatalf("delete: %+v", res)
	}
	forget := onItsWay{&catalogVolume{}, request{o: op.Op{Kind: op.ForgetDeleted, Session: session, Seq: at}}}
	w.onTheirWay = append(w.onTheirWay, forget)
	if cut == 1 {
		return
	}
	if res := w.r.propose(forget.q)[0]; res.Kind != storage.KindNone {
		w.t.Fatalf("forget: %+v", res)
	}
	if cut == 2 {
		return
	}
	w.index++
	v.gone = true
}

func (w *forgetWorld) step() {
	ready := func(v *catalogVolume) bool { return !v.deleting }
	switch rapid.IntRange(0, 13).Draw(w.t, "what") {
	case 0:
		w.index++
		w.volumes = append(w.volumes, &catalogVolume{id: storage.VolumeID(len(w.volumes) + 1), generation: 1, seq: map[storage.SessionID]uint64{}})
	case 1, 2:
		if v := w.pick("open", ready); v != nil && len(v.sessions) < 50 {
			w.index++
			w.lastSession++
			v.sessions = append(v.sessions, w.lastSession)
			res, now := w.send(v, op.Op{Kind: op.OpenSession, Session: w.lastSession, Generation: v.generation}, nil)
			w.must(res, now, "a new session", v)
		}
	case 3:
		if v := w.pick("close", func(v *catalogVolume) bool { return len(v.sessions) > 0 }); v != nil {
			w.send(v, op.Op{Kind: op.CloseSession, Session: rapid.SampledFrom(v.sessions).Draw(w.t, "session")}, nil)
		}
	case 4, 5, 6:
		if v := w.pick("write", func(v *catalogVolume) bool { return len(v.sessions) > 0 }); v != nil {
			s := rapid.SampledFrom(v.sessions).Draw(w.t, "session")
			v.seq[s]++
			p := blocks(v.seq[s], 1)
			w.send(v, op.Op{Kind: op.Write, Session: s, Seq: v.seq[s], Generation: v.generation, Extent: storage.ExtentIndex(v.seq[s] % 3),
				Length: uint32(len(p)), Sums: op.AppendSums(nil, 0, p)}, p)
		}
	case 7:
		if v := w.pick("take over", ready); v != nil {
			w.index++
			v.generation++
			res, now := w.send(v, op.Op{Kind: op.SetGeneration, Generation: v.generation, Seq: w.index}, nil)
			w.must(res, now, "a takeover", v)
		}
	case 8:
		if v := w.pick("delete", ready); v != nil {
			w.index++
			v.deleting = true
		}
	case 9:
		if v := w.pick("delete on", func(v *catalogVolume) bool { return v.deleting && !v.gone }); v != nil {
			w.deletion(v, false)
		}
	case 10:
		w.r.checkpoint()
	case 11:
		w.r.reopen(w.cfg)
	default:
		if n := len(w.onTheirWay); n > 0 {
			x := rapid.SampledFrom(w.onTheirWay).Draw(w.t, "arrives")
			if x.q.o.Kind == op.ForgetDeleted {
				w.r.propose(x.q)
				return
			}
			w.deliver(x)
		}
	}
}

// TestForgottenVolumesStayDeleted guards I3 and I9 (tried, each is found: without maxSession of the floor a late session opens; with
// the comparison of Seq a late takeover or deletion makes the volume known again; the comparison of the
// tombstone's index is TestLateForgetting's): a group forgets the volumes it has deleted, and
// nothing that was ever asked for them is applied, however late and however often it arrives. Volumes that are there are served,
// known to the group or not. What is left in the end, in memory, on the disk and in a manifest, is of volumes that are there.
func TestForgottenVolumesStayDeleted(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := testConfig(memFS(t))
		w := &forgetWorld{t: rt, r: newRig(t, cfg), cfg: cfg}
		defer func() { _ = w.r.s.Close() }()
		for range rapid.IntRange(20, 150).Draw(rt, "steps") {
			w.step()
		}
		for _, v := range w.volumes {
			if v.deleting && !v.gone {
				w.deletion(v, true)
			}
		}
		for _, x := range w.onTheirWay { // all of it once more
			if x.q.o.Kind != op.ForgetDeleted {
				w.deliver(x)
			}
		}
		w.r.checkpoint()
		w.small()
		w.r.reopen(cfg)
		w.small()
		for _, x := range w.onTheirWay {
			if x.q.o.Kind != op.ForgetDeleted {
				w.deliver(x)
			}
		}
		w.purged()
		if err := w.r.s.Close(); err != nil {
			rt.Fatal(err)
		}
		report, err := check.Run(context.Background(), check.Config{FS: cfg.FS, Dir: cfg.Dir, Finding: func(s string) { rt.Error(s) }})
		if err != nil || report.Findings > 0 {
			rt.Fatalf("%+v: %v", report, err)
		}
	})
}

// small fails if the group, or its manifest, says anything of a volume that is deleted.
func (w *forgetWorld) small() {
	gone := map[storage.VolumeID]bool{}
	for _, v := range w.volumes {
		gone[v.id] = v.gone
		if _, known := w.r.g.Volume(v.id); known && v.gone {
			w.t.Fatalf("volume %d is deleted and remembered", v.id)
		}
	}
	m, err := w.r.g.OpenManifest()
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	for _, part := range m.parts {
		err := table.DecodeStatePart(part, func(id storage.VolumeID, _ *table.Volume) error {
			if gone[id] {
				w.t.Errorf("volume %d is deleted and in the manifest", id)
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	refs, err := m.Extents(table.Ref{}, table.MaxRefs)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ref := range refs {
		if gone[ref.Volume] {
			w.t.Errorf("%s is pulled, of a deleted volume", ref)
		}
	}
}

// purged waits until the tables of deleted volumes are gone.
func (w *forgetWorld) purged() {
	w.r.checkpoint()
	w.r.s.worker.Purge()
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(time.Millisecond) {
		_, _, more, err := w.r.s.db.First([]byte{table.KeyPurge}, []byte{table.KeyPurge + 1})
		if err != nil {
			w.t.Fatal(err)
		}
		if !more {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatal("tables of deleted volumes are not removed")
		}
	}
	for _, v := range w.volumes {
		if _, _, found, err := w.r.s.db.First(table.VolumeKey(table.KeyPage, w.r.g.set.id, v.id), table.AfterPrefix(table.VolumeKey(table.KeyPage, w.r.g.set.id, v.id))); err != nil || found && v.gone {
			w.t.Fatalf("volume %d has tables: %v", v.id, err)
		}
	}
}

// TestOldTombstonesAreForgotten: what earlier versions have kept of deleted volumes goes with the next deletion in the group,
// and a manifest shrinks to what is there.
func TestOldTombstonesAreForgotten(t *testing.T) {
	cfg := testConfig(memFS(t))
	r := newRig(t, cfg)
	const n = 2000
	for i := range n {
		r.ok(request{o: op.Op{Kind: op.DeleteVolume, Volume: storage.VolumeID(i + 1000)}}) // with no index, as they wrote it
	}
	size := func() (bytes int) {
		r.checkpoint()
		m, err := r.g.OpenManifest()
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		for _, p := range m.parts {
			bytes += len(p)
		}
		return bytes
	}
	before := size()
	r.ok(openSession(5))
	r.ok(request{o: op.Op{Kind: op.ForgetDeleted, Session: 5, Seq: 9}})
	if after := size(); before < n*40 || after > 1024 {
		t.Errorf("the small state has %d bytes with %d tombstones, and %d without", before, n, after)
	}
	r.reopen(cfg)
	if len(r.g.state.All(1)) != 2 {
		t.Errorf("the group remembers %d volumes, want one and the floor", len(r.g.state.All(1)))
	}
	if res := r.propose(request{o: op.Op{Kind: op.OpenSession, Volume: 1500, Session: 4}})[0]; res.Kind != storage.KindFenced {
		t.Errorf("a late session on a deleted volume: %+v", res)
	}
}

// TestLateForgetting: a request to forget that comes late leaves the tombstones of later deletions, which are not all of what
// may still arrive (tried: without the comparison of the tombstone's index the session opens on the deleted volume).
func TestLateForgetting(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	of := func(kind op.Kind, v storage.VolumeID, s storage.SessionID, at uint64) request {
		return request{o: op.Op{Kind: kind, Volume: v, Session: s, Seq: at, Generation: 1}}
	}
	r.ok(of(op.DeleteVolume, 1, 0, 10)) // and the request to forget as of index 10, when session 5 was the last, is on its way
	r.ok(of(op.OpenSession, 2, 6, 0))   // from index 11
	r.ok(of(op.DeleteVolume, 2, 0, 12))
	r.ok(of(op.ForgetDeleted, 0, 5, 10))
	if _, known := r.g.Volume(1); known {
		t.Error("volume 1 is remembered")
	}
	if res := r.propose(of(op.OpenSession, 2, 6, 0))[0]; res.Kind != storage.KindNotFound {
		t.Errorf("a late copy of the opening on volume 2: %+v", res)
	}
	r.ok(of(op.ForgetDeleted, 0, 6, 12))
	if res := r.propose(of(op.ForgetDeleted, 0, 5, 10))[0]; !res.Duplicate {
		t.Errorf("forgetting again: %+v", res)
	}
	for _, q := range []request{of(op.OpenSession, 2, 6, 0), of(op.OpenSession, 1, 3, 0)} {
		if res := r.propose(q)[0]; res.Kind != storage.KindFenced {
			t.Errorf("a late opening on volume %d: %+v", q.o.Volume, res)
		}
	}
	// A volume that is there, and new to the group: what is old is asked again from later.
	if res := r.propose(of(op.SetGeneration, 3, 0, 12))[0]; res.Kind != storage.KindUnavailable {
		t.Errorf("a takeover from the floor's index: %+v", res)
	}
	r.ok(of(op.SetGeneration, 3, 0, 13))
	if res := r.propose(of(op.OpenSession, 3, 6, 0))[0]; res.Kind != storage.KindFenced {
		t.Errorf("an old session of volume 3: %+v", res)
	}
	r.ok(of(op.OpenSession, 3, 7, 0))
	if res := r.propose(of(op.CloseSession, 4, 6, 0))[0]; res.Kind != storage.KindNone || res.Window == nil {
		t.Errorf("the end of an old session of volume 4: %+v", res)
	}
	if _, known := r.g.Volume(4); known {
		t.Error("the end of an old session makes a volume known")
	}
}
