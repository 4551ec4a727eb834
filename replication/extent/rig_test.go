package extent

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

const (
	testDir = "/store"
	kib     = 1 << 10
)

var testCluster = storage.ClusterID{1, 2, 3}

func testConfig(fs vfs.FS) Config {
	return Config{
		FS: fs, Dir: testDir, Cluster: testCluster, Store: storage.StoreID{9},
		SegmentBytes: 256 * kib, CheckpointBytes: 1 << 30, CacheBytes: 256 * kib, MemTableBytes: 256 * kib, BlockCacheBytes: 256 * kib,
		Segment: segment.Config{FreeSegments: 1},
	}
}

func memFS(t testing.TB) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll(testDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/"} {
		d, err := fs.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
		_ = d.Close()
	}
	return fs
}

func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rig plays the part of replication for one group of one replica.
type rig struct {
	t     testing.TB
	s     *Store
	g     *Group
	term  uint64
	index uint64 // of the last entry appended
	seq   uint64 // of the last request of session 1
}

var testKey = segment.GroupKey{Group: 1, Incarnation: 1}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, s: openStore(t, cfg), term: 1}
	t.Cleanup(func() { _ = r.s.Close() })
	g, err := r.s.CreateGroup(testKey)
	if err != nil {
		t.Fatal(err)
	}
	r.g = g
	return r
}

// propose appends operations as entries, makes them durable and applies them.
func (r *rig) propose(ops ...request) []op.Result {
	r.t.Helper()
	results, err := r.tryPropose(ops...)
	if err != nil {
		r.t.Fatal(err)
	}
	return results
}

type request struct {
	o       op.Op
	payload []byte
}

func (q request) data() []byte { return append(q.o.AppendHeader(nil), q.payload...) }

func (r *rig) tryPropose(ops ...request) ([]op.Result, error) {
	var entries []segment.Entry
	var apply []ApplyEntry
	for _, q := range ops {
		r.index++
		data := q.data()
		entries = append(entries, segment.Entry{Index: r.index, Term: r.term, Data: data})
		apply = append(apply, ApplyEntry{Index: r.index, Term: r.term, IsCommand: true, Data: data})
	}
	end, err := r.g.Log().Append(entries)
	if err != nil {
		return nil, err
	}
	if err := r.s.Log().Wait(context.Background(), end); err != nil {
		return nil, err
	}
	return r.g.Apply(apply), nil
}

// ok proposes one operation that must be applied.
func (r *rig) ok(q request) op.Result {
	r.t.Helper()
	res := r.propose(q)[0]
	if res.Kind != storage.KindNone {
		r.t.Fatalf("%s: %v %s", q.o.Kind, res.Kind, res.Text)
	}
	return res
}

func (r *rig) checkpoint() {
	r.t.Helper()
	if err := r.tryCheckpoint(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) tryCheckpoint() error {
	f, err := r.g.Freeze()
	if err != nil {
		return err
	}
	defer f.Release()
	index, term := r.g.Applied()
	return f.Persist(index, term, []byte("config"), 1)
}

// reopen closes the store, opens it again and re-applies what the checkpoint does not hold, as Raft would.
func (r *rig) reopen(cfg Config) {
	r.t.Helper()
	if err := r.s.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.s = openStore(r.t, cfg)
	r.recover()
}

func (r *rig) recover() {
	r.t.Helper()
	if r.g = r.s.Group(testKey); r.g == nil {
		r.t.Fatal("the group is gone")
	}
	if d := r.s.Log().Damaged(); len(d) > 0 {
		r.t.Fatalf("damaged: %+v", d)
	}
	replay(r.t, r.g)
	r.index, _ = r.g.Applied()
}

// replay applies what the log holds above the applied index.
func replay(t testing.TB, g *Group) {
	t.Helper()
	applied, _ := g.Applied()
	for i := applied + 1; i <= g.Log().LastIndex(); i++ {
		e, err := g.Log().Get(i)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		g.Apply([]ApplyEntry{{Index: i, Term: e.Term, IsCommand: true, Data: e.Data}})
	}
}

func openSession(id storage.SessionID) request {
	return request{o: op.Op{Kind: op.OpenSession, Volume: 1, Session: id, Generation: 1, Epoch: 1}}
}

func (r *rig) write(x storage.ExtentIndex, offset uint32, payload []byte) request {
	r.seq++
	return request{op.Op{Kind: op.Write, Volume: 1, Extent: x, Offset: offset, Length: uint32(len(payload)), Session: 1, Seq: r.seq,
		Epoch: 1, Generation: 1, Sums: op.AppendSums(nil, offset, payload)}, payload}
}

func (r *rig) clear(x storage.ExtentIndex, offset, length uint32) request {
	r.seq++
	return request{o: op.Op{Kind: op.Clear, Volume: 1, Extent: x, Offset: offset, Length: length, Session: 1, Seq: r.seq, Epoch: 1, Generation: 1}}
}

// blocks returns n blocks of bytes that depend on the seed.
func blocks(seed uint64, n int) []byte {
	p := make([]byte, n*storage.BlockSize)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < len(p); i += 512 {
		v := rng.Uint64()
		for j := range 64 {
			p[i+8*j] = byte(v >> (j % 8 * 8))
			p[i+8*j+1] = byte(j)
		}
	}
	return p
}

func readAt(g *Group, epoch storage.Epoch, x storage.ExtentIndex, offset, length uint32) ([]byte, []bool, error) {
	req := op.ReadRequest{Volume: 1, Extent: x, Offset: offset, Length: length, Generation: 1, Epoch: epoch}
	_, n := req.Blocks()
	dst := bytes.Repeat([]byte{0xee}, n*storage.BlockSize)
	sums, holes := make([]uint32, n), make([]bool, n)
	err := g.Read(req, dst, sums, holes, nil)
	if err == nil {
		for i := range n {
			if !holes[i] && op.Sum(dst[i*storage.BlockSize:][:storage.BlockSize]) != sums[i] {
				panic("a read returned a wrong sum")
			}
		}
	}
	return dst, holes, err
}

func (r *rig) wantRead(x storage.ExtentIndex, offset uint32, want []byte) {
	r.t.Helper()
	got, _, err := readAt(r.g, op.HeadEpoch, x, offset, uint32(len(want)))
	if err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		r.t.Fatalf("extent %d at %d: wrong bytes", x, offset)
	}
}
