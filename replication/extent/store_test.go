package extent

import (
	"bytes"
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

func TestWriteReadCheckpointReopen(t *testing.T) {
	cfg := testConfig(memFS(t))
	r := newRig(t, cfg)
	r.ok(openSession(1))
	a, b := blocks(1, 3), blocks(2, 40)
	r.ok(r.write(0, 4096, a))
	r.ok(r.write(5, 60*4096, b)) // across pages
	r.wantRead(0, 4096, a)
	r.wantRead(5, 60*4096, b)
	r.wantRead(7, 0, make([]byte, 4096))
	r.checkpoint()
	r.ok(r.clear(0, 8192, 4096))
	clear(a[4096:8192])
	r.wantRead(0, 4096, a)
	for range 2 {
		r.reopen(cfg)
		r.wantRead(0, 4096, a)
		r.wantRead(5, 60*4096, b)
		if c := r.g.Checkpointed(); c.Index != 3 || string(c.Config) != "config" || c.ConfigIndex != 1 {
			t.Errorf("checkpoint %+v", c)
		}
	}
	v, ok := r.g.Volume(1)
	if !ok || len(v.Sessions) != 1 || v.Sessions[0].Window.Low != 3 {
		t.Errorf("volume %+v", v)
	}
}

func TestIdentityAndLock(t *testing.T) {
	cfg := testConfig(memFS(t))
	s := openStore(t, cfg)
	if _, err := Open(cfg); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("opened twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	other := cfg
	other.Cluster = storage.ClusterID{7}
	if _, err := Open(other); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("another cluster: %v", err)
	}
	other = cfg
	other.Store = storage.StoreID{8}
	if _, err := Open(other); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("another store: %v", err)
	}
	cfg.Cluster, cfg.Store = storage.ClusterID{}, storage.StoreID{}
	s = openStore(t, cfg)
	if s.ID() != (storage.StoreID{9}) || s.identity.Cluster != testCluster {
		t.Errorf("%s of %s", s.ID(), s.identity.Cluster)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStableAndIncarnations(t *testing.T) {
	cfg := testConfig(memFS(t))
	s := openStore(t, cfg)
	st := s.Stable(testKey)
	if v, err := st.Get([]byte("term")); v != nil || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if err := errors.Join(st.Set([]byte("term"), []byte("77")), st.Set([]byte("vote"), []byte("x"))); err != nil {
		t.Fatal(err)
	}
	var last storage.Incarnation
	for range 3 {
		n, err := s.NextIncarnation(4)
		if err != nil || n <= last {
			t.Fatalf("%d after %d: %v", n, last, err)
		}
		last = n
	}
	key := segment.GroupKey{Group: 4, Incarnation: last}
	if _, err := s.CreateGroup(key); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateGroup(key); !errors.Is(err, storage.ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	if err := s.RemoveGroup(key); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, cfg)
	defer s.Close()
	if _, err := s.CreateGroup(key); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("an incarnation came back: %v", err)
	}
	if v, err := s.Stable(testKey).Get([]byte("term")); string(v) != "77" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if v, err := s.Stable(testKey).Get([]byte("vote")); string(v) != "x" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if len(s.Groups()) != 0 {
		t.Errorf("groups %v", s.Groups())
	}
}

func TestVersions(t *testing.T) {
	cfg := testConfig(memFS(t))
	r := newRig(t, cfg)
	r.ok(openSession(1))
	a := blocks(1, 2)
	r.ok(r.write(0, 0, a))
	setEpoch := func(e storage.Epoch) {
		r.ok(request{o: op.Op{Kind: op.SetEpoch, Volume: 1, Epoch: e}})
	}
	at := func(e storage.Epoch, want []byte) {
		t.Helper()
		got, _, err := readAt(r.g, e, 0, 0, 8192)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("epoch %d: wrong bytes, %v", e, err)
		}
	}
	b := append(blocks(2, 1), a[4096:]...)
	d := append(make([]byte, 4096), a[4096:]...)
	steps := []func(){
		func() { setEpoch(2) },
		func() {
			q := r.write(0, 0, b[:4096])
			q.o.Epoch = 2
			r.ok(q)
		},
		func() { at(1, a); at(2, b); at(op.HeadEpoch, b); at(0, make([]byte, 8192)) },
		func() { setEpoch(5) },
		func() {
			q := r.clear(0, 0, 4096)
			q.o.Epoch = 5
			r.ok(q)
		},
	}
	final := func() {
		t.Helper()
		at(1, a)
		at(2, b)
		at(4, b)
		at(5, d)
		at(op.HeadEpoch, d)
	}
	for _, step := range steps {
		step()
		r.checkpoint()
	}
	final()
	r.reopen(cfg)
	final()
	runs, err := r.g.Status(op.StatusRequest{ReadRequest: op.ReadRequest{Volume: 1, Offset: 512, Length: 12288, Generation: 1, Epoch: op.HeadEpoch}, Dirty: true, Since: 1})
	want := []op.Run{{Length: 3584, Flags: op.RunHole | op.RunZero | op.RunDirty}, {Length: 4096, Flags: op.RunAllocated}, {Length: 4608, Flags: op.RunHole | op.RunZero}}
	if err != nil || len(runs) != 3 || runs[0] != want[0] || runs[1] != want[1] || runs[2] != want[2] {
		t.Errorf("%v, %v", runs, err)
	}
}
