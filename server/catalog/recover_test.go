package catalog_test

import (
	"bytes"
	"errors"
	"maps"
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
	making := must(catalog.AddGroup{Group: c.Leader.NextGroup(), Node: 1, Store: storage.StoreID{1}}).Group
	v := must(catalog.CreateVolume{Name: "v", SizeBytes: 1 << 30, At: recoveredAt}).Volume
	idle := must(catalog.CreateVolume{Name: "idle", SizeBytes: 1 << 30, At: recoveredAt}).Volume
	a := must(catalog.Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: "host", Kind: storage.HolderHost, Host: "h"}, Access: storage.AccessExclusive, At: recoveredAt}).Attachment
	x := must(catalog.OpenSession{Volume: storage.ByID(v.ID), Gateway: catalog.Gateway{Host: "host"}, Attachment: a.ID, Instance: "i", At: recoveredAt}).Session

	// Group 1 has a second voter on the lost node, and the one on the first node was to leave.
	second := must(catalog.PlanReplica{Group: 1, Node: lost, Store: storage.StoreID{2}}).Replica
	must(catalog.SetReplica{Group: 1, Key: second, Role: storage.RoleVoter})
	first, _ := c.Leader.Group(1)
	must(catalog.SetReplica{Group: 1, Key: first.Replicas[0].Key, Role: storage.RoleVoter, ConfigIndex: 5000})
	must(catalog.SetReplica{Group: 1, Key: first.Replicas[0].Key, Role: storage.RoleLeaving, ConfigIndex: 5000})
	must(catalog.SetNodeState{Node: lost, State: storage.NodeDown, Since: recoveredAt})
	before, err := c.Leader.Snapshot()
	if err != nil {
		t.Fatal(err)
	}

	const index = 1 << 40
	s, err := c.Leader.Recovered(index, []storage.NodeID{lost}, nil, recoveredAt)
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
	if g, _ := s.Group(1); len(g.Replicas) != 1 || g.Replicas[0].Node != 1 || g.Replicas[0].Role != storage.RoleVoter || g.Replicas[0].ConfigIndex != 0 {
		t.Errorf("what is left of group 1 is %+v; it would never have a voter that is recorded", g.Replicas)
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
	again, err := s.Recovered(at+1<<32, nil, nil, recoveredAt)
	if err != nil || again.Check() != nil {
		t.Errorf("a second recovery: %v", err)
	}
}

// TestRecoveredTwice: a second recovery begins with a copy from before the first one, on the node that has the first one's. It gives out nothing that
// the first did. Guards: the time in Beyond, and each maximum with what is known.
func TestRecoveredTwice(t *testing.T) {
	c := catalogtest.New(t)
	c.Cluster(1)
	c.Must(catalog.CreateVolume{Name: "v", SizeBytes: 1 << 30, At: recoveredAt})
	recovered := func(known *catalog.State, at time.Time) *catalog.State {
		t.Helper()
		s, err := c.Leader.Recovered(1<<40, nil, known, at)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	gives := func(s *catalog.State) [5]uint64 {
		t.Helper()
		at := uint64(1 << 40)
		apply := func(cmd catalog.Command) catalog.Result {
			t.Helper()
			at++
			r := s.ApplyCommand(at, cmd)
			if r.Err != nil {
				t.Fatalf("%#v: %v", cmd, r.Err)
			}
			return r
		}
		n := apply(catalog.AddNode{Name: "b", Addrs: storage.Addrs{Peer: "b:7001"}, At: recoveredAt, Stores: []storage.Store{{ID: storage.StoreID{3}, CapacityBytes: 1 << 40}}}).Node
		r := apply(catalog.PlanReplica{Group: 1, Node: n, Store: storage.StoreID{3}}).Replica
		v := apply(catalog.CreateVolume{Name: "w", SizeBytes: 1 << 30, At: recoveredAt}).Volume
		a := apply(catalog.Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: "host", Kind: storage.HolderHost, Host: "h"}, Access: storage.AccessExclusive, At: recoveredAt}).Attachment
		return [5]uint64{uint64(n), uint64(r.Incarnation), uint64(v.ID), uint64(a.ID), uint64(a.Generation)}
	}
	first := recovered(nil, recoveredAt)
	one := gives(first)
	two := gives(recovered(first, recoveredAt.Add(time.Minute)))
	for i, what := range []string{"node", "incarnation", "volume", "attachment", "generation"} {
		if two[i] <= one[i] {
			t.Errorf("%s %d, and %d after the second recovery", what, one[i], two[i])
		}
	}
	if catalog.SameEra(storage.Incarnation(one[1]), 1) || catalog.SameEra(storage.Incarnation(one[1]), storage.Incarnation(two[1])) || !catalog.SameEra(1, 1000) {
		t.Errorf("eras of %d and %d", one[1], two[1])
	}
}

func TestRecoveredRefuses(t *testing.T) {
	c := catalogtest.New(t)
	c.Cluster(1)
	if _, err := c.Leader.Recovered(1<<40, []storage.NodeID{7}, nil, recoveredAt); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a lost node that nobody knows: %v", err)
	}
	if _, err := c.Leader.Recovered(c.Leader.Applied(), nil, nil, recoveredAt); storage.KindOf(err) != storage.KindInternal {
		t.Errorf("an index that was used: %v", err)
	}
}

// TestWhatIsLeftOfAGroup: replicas on lost nodes are forgotten, unless nothing else is left that may hold what the group did.
func TestWhatIsLeftOfAGroup(t *testing.T) {
	type roles map[storage.NodeID]storage.ReplicaRole
	const voter, leaving, learner, pulling = storage.RoleVoter, storage.RoleLeaving, storage.RoleLearner, storage.RolePulling
	for name, c := range map[string]struct{ of, want roles }{
		"a majority":                    {roles{1: voter, 2: voter, 3: voter}, roles{1: voter, 2: voter}},
		"one that was to leave":         {roles{1: leaving, 3: voter, 4: voter}, roles{1: voter}},
		"a learner that was promoted":   {roles{1: learner, 3: voter, 4: voter}, roles{1: voter}},
		"a voter and a learner":         {roles{1: voter, 2: learner, 3: voter}, roles{1: voter, 2: learner}},
		"one that has not pulled":       {roles{1: pulling, 3: voter, 4: voter}, roles{1: pulling, 3: voter, 4: voter}},
		"nothing":                       {roles{3: voter, 4: voter}, roles{3: voter, 4: voter}},
		"a voter, and one that is lost": {roles{2: voter, 4: pulling}, roles{2: voter}},
	} {
		var all []storage.Replica
		for n := storage.NodeID(1); n <= 4; n++ {
			if role, ok := c.of[n]; ok {
				all = append(all, storage.Replica{Node: n, Key: storage.ReplicaKey{Incarnation: storage.Incarnation(n)}, Role: role})
			}
		}
		got := roles{}
		for _, r := range catalog.LeftOf(all, []storage.NodeID{3, 4}) {
			got[r.Node] = r.Role
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
