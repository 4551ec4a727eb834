package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/volume"
)

// fakeCatalog is a catalog with a leader and this node's copy of it, which is as old as the test wants. It is used by one
// goroutine.
type fakeCatalog struct {
	t            *testing.T
	leader, copy *catalog.State
	log          [][]byte // commands; the copy has applied the first copied
	copied       int
	lost         bool  // answers to commands do not arrive
	down         error // what a read of the leader gives
	changed      chan struct{}
}

func newFakeCatalog(t *testing.T) *fakeCatalog {
	t.Helper()
	f := &fakeCatalog{t: t, leader: catalog.New(), copy: catalog.New(), changed: make(chan struct{})}
	store := storage.StoreID{1}
	f.must(catalog.InitCluster{Cluster: catalog.Cluster{ID: storage.ClusterID{1}, Replicas: 1, CreatedAt: time.Now().UTC()}})
	n := f.must(catalog.AddNode{Name: "a", Addrs: catalog.Addrs{Peer: "a:1"}, At: time.Now().UTC(),
		Stores: []catalog.Store{{ID: store, CapacityBytes: 1 << 40}}}).Node
	g := f.must(catalog.AddGroup{Group: f.leader.NextGroup(), Node: n, Store: catalog.StoreText(store)}).Group
	f.must(catalog.SetGroupReady{Group: g})
	f.catchUp()
	return f
}

func (f *fakeCatalog) catchUp() {
	for ; f.copied < len(f.log); f.copied++ {
		f.copy.Apply(uint64(f.copied+1), f.log[f.copied])
	}
}

func (f *fakeCatalog) must(cmd catalog.Command) catalog.Result {
	f.t.Helper()
	lost := f.lost
	f.lost = false
	r, err := f.Propose(f.t.Context(), cmd)
	if f.lost = lost; err != nil {
		f.t.Fatalf("%#v: %v", cmd, err)
	}
	return r
}

func (f *fakeCatalog) Propose(_ context.Context, cmd catalog.Command) (catalog.Result, error) {
	b, err := catalog.Encode(cmd)
	if err != nil {
		return catalog.Result{}, err
	}
	f.log = append(f.log, b)
	r, _ := f.leader.Apply(uint64(len(f.log)), b)
	if r.Err != nil {
		return r, r.Err
	}
	if f.lost {
		return catalog.Result{}, storage.E("ask the catalog", storage.KindUnavailable, "", errors.New("the answer was lost"))
	}
	return r, nil
}

func (f *fakeCatalog) Attach(ctx context.Context, cmd catalog.Attach) (catalog.Attachment, error) {
	r, err := f.Propose(ctx, cmd)
	if err != nil {
		return catalog.Attachment{}, err
	}
	return *r.Attachment, nil
}

func (f *fakeCatalog) Detach(ctx context.Context, cmd catalog.Detach) error {
	_, err := f.Propose(ctx, cmd)
	return err
}

func (f *fakeCatalog) View(fn func(*catalog.State)) control.Freshness {
	fn(f.copy)
	return control.Freshness{Index: uint64(f.copied)}
}

func (f *fakeCatalog) Read(_ context.Context, fn func(*catalog.State)) error {
	if f.down != nil {
		return f.down
	}
	f.catchUp()
	fn(f.copy)
	return nil
}

func (f *fakeCatalog) Changed() (uint64, <-chan struct{}) { return uint64(f.copied), f.changed }

// volume makes a volume that this node shares, which the copy does not know yet.
func (f *fakeCatalog) volume(name string) (catalog.Volume, storage.AttachmentID) {
	f.t.Helper()
	v := f.must(catalog.CreateVolume{Name: name, SizeBytes: 1 << 20, At: time.Now().UTC()}).Volume
	a := f.must(catalog.Attach{Volume: catalog.ByID(v.ID), Holder: catalog.NBDHolder(1, "a", false), Access: catalog.Shared, At: time.Now().UTC()})
	return *v, a.Attachment.ID
}

// TestOpenAnswerLost: a session whose answer was lost is not kept alive by reports, so that it expires if nobody asks again;
// whoever does gets the same session. One whose close was not answered is not kept alive either.
func TestOpenAnswerLost(t *testing.T) {
	f := newFakeCatalog(t)
	c := newCluster(nil, f, 1, "a", "instance")
	_, attachment := f.volume("v")
	f.lost = true
	request := volume.SessionRequest{Attachment: attachment}
	if _, err := c.OpenSession(t.Context(), "v", request); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("a lost answer: %v", err)
	}
	if live := c.liveSessions(); len(live) != 0 {
		t.Errorf("%v would be kept alive for ever", live)
	}
	f.lost = false
	s, err := c.OpenSession(t.Context(), "v", request)
	if err != nil || s.ID != 1 || len(s.Predecessors) != 0 {
		t.Fatalf("asked again: %+v, %v; want the session that was opened", s, err)
	}
	if live := c.liveSessions(); len(live) != 1 || live[0] != s.ID {
		t.Errorf("live: %v", live)
	}
	next, err := c.OpenSession(t.Context(), "v", volume.SessionRequest{Attachment: attachment, After: s.ID})
	if err != nil || next.ID <= s.ID || len(next.Predecessors) != 1 || next.Predecessors[0] != s.ID {
		t.Fatalf("its successor: %+v, %v", next, err)
	}
	f.lost = true
	if err := c.CloseSession(t.Context(), s.ID); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("a close without an answer: %v", err)
	}
	if live := c.liveSessions(); len(live) != 1 || live[0] != next.ID {
		t.Errorf("live after the close: %v", live)
	}
}

// TestWatchOnAStaleCopy: a volume that this node has not heard of is not taken for a deleted one, which would end its
// connections: only the leader can say so. The line is WatchVolume's Read.
func TestWatchOnAStaleCopy(t *testing.T) {
	f := newFakeCatalog(t)
	c := newCluster(nil, f, 1, "a", "instance")
	v, attachment := f.volume("v")
	f.down = storage.E("ask the catalog", storage.KindUnavailable, "", nil)
	if s, err := c.WatchVolume(t.Context(), v.ID, attachment, 0); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("a copy that has not heard of it, and no leader: %+v, %v", s, err)
	}
	if _, err := c.Volume(t.Context(), "v"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("by name without a leader: %v", err)
	}
	f.down = nil
	s, err := c.WatchVolume(t.Context(), v.ID, attachment, 0)
	if err != nil || s.Deleted || s.SizeBytes != v.SizeBytes {
		t.Fatalf("a stale copy: %+v, %v", s, err)
	}
	gone, err := c.WatchVolume(t.Context(), v.ID+1, 0, 0)
	if err != nil || !gone.Deleted {
		t.Errorf("a volume that is not there: %+v, %v", gone, err)
	}
	f.volume("w")
	if found, err := c.Volume(t.Context(), "w"); err != nil || found.Name != "w" {
		t.Errorf("by name, unknown to the copy: %+v, %v", found, err)
	}
}
