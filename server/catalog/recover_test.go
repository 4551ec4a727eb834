package catalog_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/catalog/catalogtest"
)

var recoveredAt = time.Unix(1_900_000_000, 0).UTC()

// TestRecovered: a catalog that begins anew with a copy gives out nothing that may have been given out after the copy was made, and nobody
// holds a volume any more. Guards (each line of State.Recovered makes it red when it is taken out): the jumps of the counters, the
// removal of the lost, the end of attachments and sessions, the generations, the groups that are being made.
func TestRecovered(t *testing.T) {
	c := catalogtest.New(t)
	c.Cluster(2)
	must := c.Must
	lost := must(catalog.AddNode{Name: "b", Addrs: storage.Addrs{Peer: "b:7001"}, At: recoveredAt, Stores: []storage.Store{{ID: storage.StoreID{2}, CapacityBytes: 1 << 40}}}).Node
	must(catalog.SetNodeState{Node: lost, State: storage.NodeDown, Since: recoveredAt})
	making := must(catalog.AddGroup{Group: c.Leader.NextGroup(), Node: 1, Store: storage.StoreID{1}}).Group
	v := must(catalog.CreateVolume{Name: "v", SizeBytes: 1 << 30, At: recoveredAt}).Volume
	idle := must(catalog.CreateVolume{Name: "idle", SizeBytes: 1 << 30, At: recoveredAt}).Volume
	a := must(catalog.Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: "host", Kind: storage.HolderHost, Host: "h"}, Access: storage.AccessExclusive, At: recoveredAt}).Attachment
	x := must(catalog.OpenSession{Volume: storage.ByID(v.ID), Gateway: catalog.Gateway{Host: "host"}, Attachment: a.ID, Instance: "i", At: recoveredAt}).Session
	before, err := c.Leader.Snapshot()
	if err != nil {
		t.Fatal(err)
	}

	const index = 1 << 40
	s, err := c.Leader.Recovered(index, []storage.NodeID{lost}, recoveredAt)
	if err != nil {
		t.Fatal(err)
	}
	if after, err := c.Leader.Snapshot(); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the copy was changed, %v", err)
	}
	if s.Applied() != index || s.Cluster() != c.Leader.Cluster() {
		t.Errorf("index %d, cluster %+v", s.Applied(), s.Cluster())
	}
	if n, _ := s.Node(lost); n.State != storage.NodeRemoved || !n.SilentSince.IsZero() {
		t.Errorf("the lost node is %+v", n)
	}
	if n, _ := s.Node(1); n.State != storage.NodeUp {
		t.Errorf("the node that is left is %+v", n)
	}
	if _, ok := s.Group(making); ok {
		t.Error("a group that was being made would be made once more")
	}
	if got := s.Attachments(); len(got) != 0 {
		t.Errorf("volumes are held: %+v", got)
	}
	if got, _ := s.Session(x.ID); got.State != catalog.SessionClosing {
		t.Errorf("the session is %+v", got)
	}
	for _, old := range []storage.Volume{*v, *idle} {
		if got, _ := s.Volume(old.ID); got.Generation < old.Generation+1<<30 || got.Fenced >= got.Generation || got.Revision != index || got.Moved == nil {
			t.Errorf("volume %s has generation %s, fenced %s, revision %d", got.Name, got.Generation, got.Fenced, got.Revision)
		}
	}
	if n := len(s.Unfenced()); n != 2 {
		t.Errorf("%d volumes are to be fenced, want both", n)
	}

	at := uint64(index)
	apply := func(cmd catalog.Command) catalog.Result {
		t.Helper()
		at++
		r := s.ApplyCommand(at, cmd)
		if r.Err != nil {
			t.Fatalf("%#v: %v", cmd, r.Err)
		}
		return r
	}
	if n := apply(catalog.AddNode{Name: "b", Addrs: storage.Addrs{Peer: "b:7001"}, At: recoveredAt, Stores: []storage.Store{{ID: storage.StoreID{3}, CapacityBytes: 1 << 40}}}).Node; n <= lost+catalog.MaxNodes-1 {
		t.Errorf("the next node has id %s", n)
	}
	if g := s.NextGroup(); g <= making+catalog.MaxGroups-1 {
		t.Errorf("the next group has id %s", g)
	}
	if r := apply(catalog.PlanReplica{Group: 1, Node: lost + catalog.MaxNodes + 1, Store: storage.StoreID{3}}).Replica; r.Incarnation < 1<<16 {
		t.Errorf("the next replica of group 1 is %s", r)
	}
	if id := apply(catalog.CreateVolume{Name: "new", SizeBytes: 1 << 30, At: recoveredAt}).Volume.ID; id < idle.ID+1<<30 {
		t.Errorf("the next volume has id %s", id)
	}
	r := apply(catalog.Attach{Volume: storage.ByName("new"), Holder: storage.Holder{ID: "host", Kind: storage.HolderHost, Host: "h"}, Access: storage.AccessExclusive, At: recoveredAt})
	if r.Attachment.ID < a.ID+1<<30 {
		t.Errorf("the next attachment has id %s", r.Attachment.ID)
	}
	if id := apply(catalog.OpenSession{Volume: storage.ByName("new"), Gateway: catalog.Gateway{Host: "host"}, Attachment: r.Attachment.ID, Instance: "i", At: recoveredAt}).Session.ID; id < x.ID+1<<30 {
		t.Errorf("the next session has id %s", id)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	again, err := s.Recovered(at+1<<32, nil, recoveredAt)
	if err != nil || again.Check() != nil {
		t.Errorf("a second recovery: %v", err)
	}
}

func TestRecoveredRefuses(t *testing.T) {
	c := catalogtest.New(t)
	c.Cluster(1)
	if _, err := c.Leader.Recovered(1<<40, []storage.NodeID{7}, recoveredAt); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a lost node that nobody knows: %v", err)
	}
	if _, err := c.Leader.Recovered(c.Leader.Applied(), nil, recoveredAt); storage.KindOf(err) != storage.KindInternal {
		t.Errorf("an index that was used: %v", err)
	}
}
