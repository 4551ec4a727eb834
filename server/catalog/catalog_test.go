package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
)

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func storeID(n byte) storage.StoreID { return storage.StoreID{0: 0xd1, 15: n} }

// fixture drives a State as the log would.
type fixture struct {
	t     *testing.T
	s     *State
	index uint64
}

func newFixture(t *testing.T) *fixture { return newFixtureOf(t, Version) }

// newFixtureOf is a cluster that was made at a version; 0: before there was one.
func newFixtureOf(t *testing.T, version int) *fixture {
	f := &fixture{t: t, s: New()}
	f.ok(InitCluster{Cluster{ID: storage.ClusterID{1}, Version: version, CreatedAt: testTime}})
	return f
}

// do applies a command, and reports whether anything of the state differs then. Encode's refusal counts as the command's.
func (f *fixture) do(c Command) (r Result, changed bool) {
	f.t.Helper()
	b, err := Encode(c)
	if err != nil {
		return Result{Err: asError(err)}, false
	}
	f.index++
	before := body(f.t, f.s)
	r = f.s.Apply(f.index, b)
	if err := f.s.Check(); err != nil {
		f.t.Fatalf("after %#v: %v", c, err)
	}
	return r, !bytes.Equal(before, body(f.t, f.s))
}

func (f *fixture) ok(c Command) Result {
	f.t.Helper()
	r, _ := f.do(c)
	if r.Err != nil {
		f.t.Fatalf("%#v: %v", c, r.Err)
	}
	return r
}

// refused applies a command that must fail with the kind and whose message must hold all the words.
func (f *fixture) refused(c Command, kind storage.Kind, words ...string) {
	f.t.Helper()
	r, changed := f.do(c)
	if r.Err == nil || r.Err.Kind != kind || changed {
		f.t.Fatalf("%#v: got %v (changed: %v), want %v", c, r.Err, changed, kind)
	}
	for _, w := range words {
		if !strings.Contains(r.Err.Error(), w) {
			f.t.Errorf("%#v: %q does not say %q", c, r.Err, w)
		}
	}
}

// node adds node n with store n; group adds a ready group on it.
func (f *fixture) node(n byte) storage.NodeID {
	f.t.Helper()
	return f.ok(AddNode{Name: "n" + string('0'+n), Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(n), CapacityBytes: 1 << 40}},
		At: testTime}).Node
}

func (f *fixture) group(n byte) storage.GroupID {
	f.t.Helper()
	g := f.ok(AddGroup{f.s.NextGroup(), storage.NodeID(n), storeID(n)}).Group
	f.ok(SetGroupReady{g})
	return g
}

func (f *fixture) volume(name string) storage.Volume {
	f.t.Helper()
	return *f.ok(CreateVolume{Name: name, SizeBytes: 1 << 30, At: testTime}).Volume
}

// attached has the gateway share the volume, and returns the command with that attachment.
func (f *fixture) attached(c OpenSession) OpenSession {
	f.t.Helper()
	h := storage.Holder{ID: c.Gateway.Host, Kind: storage.HolderHost}
	if n := c.Gateway.Node; n != 0 {
		h = storage.NBDHolder(n, "n"+n.String(), false)
	}
	c.Attachment = f.ok(Attach{Volume: c.Volume, Holder: h, Access: storage.AccessShared, At: testTime}).Attachment.ID
	return c
}

func TestCommandsNeedACluster(t *testing.T) {
	f := &fixture{t: t, s: New()}
	f.refused(CreateVolume{Name: "v", SizeBytes: 4096}, storage.KindUnavailable, "not initialised")
	init := InitCluster{Cluster{ID: storage.ClusterID{7}, CreatedAt: testTime}}
	f.ok(init)
	f.ok(init)
	f.refused(InitCluster{Cluster{ID: storage.ClusterID{8}}}, storage.KindExists, "empty data directory")
	f.refused(InitCluster{Cluster{ID: storage.ClusterID{8}, Replicas: 2}}, storage.KindInvalid, "odd")
	want := Cluster{ID: storage.ClusterID{7}, Version: 1, HeartbeatTimeout: 500 * time.Millisecond, Replicas: 3, Groups: 8,
		CreatedAt: testTime}
	if f.s.Cluster() != want {
		t.Fatalf("got %+v, want %+v", f.s.Cluster(), want)
	}
}

func TestNodes(t *testing.T) {
	f := newFixture(t)
	n1 := f.node(1)
	if again := f.node(1); again != n1 {
		t.Fatalf("the same stores made node %v after node %v", again, n1)
	}
	add := AddNode{Name: "n1", Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(2), CapacityBytes: 0}}}
	f.refused(add, storage.KindExists, "--name")
	add.Name = ""
	n2 := f.ok(add).Node
	if n, _ := f.s.Node(n2); n.Name != "node-2" || n.State != storage.NodeUp {
		t.Fatalf("got %+v", n)
	}
	f.refused(AddNode{Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(1), CapacityBytes: 0}, {ID: storeID(2), CapacityBytes: 0}}}, storage.KindConflict,
		"own data directories")
	f.refused(AddNode{Addrs: storage.Addrs{Peer: "h"}, Stores: []storage.Store{{ID: storeID(3), CapacityBytes: 0}}}, storage.KindInvalid, "host:port")
	f.refused(AddNode{Addrs: storage.Addrs{Peer: "[127.0.0.1:7001]:7001"}, Stores: []storage.Store{{ID: storeID(3), CapacityBytes: 0}}}, storage.KindInvalid, "host:port")
	f.refused(AddNode{Addrs: storage.Addrs{Peer: ":7"}, Stores: []storage.Store{{ID: storeID(3), CapacityBytes: 0}}}, storage.KindInvalid, "host is missing")
	f.refused(AddNode{Stores: []storage.Store{{ID: storeID(3), CapacityBytes: 0}}}, storage.KindInvalid, "peer address")
	f.refused(AddNode{Name: "no/slash", Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(3), CapacityBytes: 0}}}, storage.KindInvalid)
	f.refused(AddNode{Addrs: storage.Addrs{Peer: "h:1"}}, storage.KindInvalid, "0 stores")
	f.refused(AddNode{Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(3), CapacityBytes: 0}, {ID: storeID(3), CapacityBytes: 0}}}, storage.KindInvalid, "twice")

	f.group(1)
	up := UpdateNode{Node: n1, Name: "renamed", Zone: "z1", Addrs: storage.Addrs{Peer: "h:2"}, Stores: []storage.Store{{ID: storeID(9), CapacityBytes: 1}}}
	f.refused(up, storage.KindConflict, "holds replicas of groups 1", "all its data directories")
	up.Stores = append(up.Stores, storage.Store{ID: storeID(1), CapacityBytes: 5})
	f.ok(up)
	if r, changed := f.do(up); r.Err != nil || changed {
		t.Fatalf("again: %v, changed: %v", r.Err, changed)
	}
	if n, ok := f.s.Node(f.s.nodeByName["renamed"]); !ok || n.Zone != "z1" || len(n.Stores) != 2 {
		t.Fatalf("got %+v", n)
	}
	if _, ok := f.s.nodeByName["n1"]; ok {
		t.Fatal("the old name still finds the node")
	}
	up.Name = "node-2"
	f.refused(up, storage.KindExists)
}

// TestRemoveLostNode: a node that is down can be removed with its replicas, but not with the last copy or the majority.
func TestRemoveLostNode(t *testing.T) {
	f := newFixture(t)
	n1, n2, n3 := f.node(1), f.node(2), f.node(3)
	f.group(1)
	f.ok(SetNodeState{Node: n1, State: storage.NodeDown})
	f.refused(SetNodeState{Node: n1, State: storage.NodeRemoved}, storage.KindConflict, "only copy of groups 1", "data directory")
	f.ok(SetNodeState{Node: n1, State: storage.NodeUp})
	for i, n := range []storage.NodeID{n2, n3} {
		key := f.ok(PlanReplica{1, n, storeID(byte(i + 2))}).Replica
		f.ok(SetReplica{Group: 1, Key: key, Role: storage.RoleVoter})
	}
	f.refused(SetNodeState{Node: n3, State: storage.NodeRemoved}, storage.KindConflict, "it is up", "down")
	f.ok(SetNodeState{Node: n2, State: storage.NodeDown})
	f.ok(SetNodeState{Node: n3, State: storage.NodeDown})
	f.refused(SetNodeState{Node: n3, State: storage.NodeRemoved}, storage.KindConflict, "no majority", "start node n2 first")
	f.ok(SetNodeState{Node: n2, State: storage.NodeUp})
	f.ok(SetNodeState{Node: n3, State: storage.NodeRemoved})
	if g, _ := f.s.Group(1); len(g.Replicas) != 3 {
		t.Errorf("replicas %v; they leave one step at a time", g.Replicas)
	}
	if err := f.s.Check(); err != nil {
		t.Error(err)
	}
	f.ok(AddNode{Name: "n3", Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(4), CapacityBytes: 5}}}) // the name is free again
}

func TestNodeStates(t *testing.T) {
	f := newFixture(t)
	n1, n2 := f.node(1), f.node(2)
	f.group(1)
	f.ok(SetNodeState{Node: n1, From: storage.NodeUp, State: storage.NodeSuspect})
	f.refused(SetNodeState{Node: n1, From: storage.NodeUp, State: storage.NodeDown}, storage.KindConflict, "it is suspect")
	f.ok(SetNodeState{Node: n1, State: storage.NodeDown})
	f.refused(SetNodeState{Node: n1, State: storage.NodeRemoved}, storage.KindConflict, "groups 1")
	f.ok(SetNodeState{Node: n1, State: storage.NodeUp})
	f.refused(SetNodeState{Node: n1, State: storage.NodeRemoved}, storage.KindConflict, "down")
	f.refused(SetNodeState{Node: n1, State: "draining"}, storage.KindInvalid)
	drain := SetNodeIntent{Node: n1, Intent: storage.IntentDrain}
	f.ok(drain)
	f.refused(SetNodeIntent{Node: n2, Intent: storage.IntentDrain}, storage.KindConflict, "join another node", "maintenance n2")
	f.refused(SetNodeState{Node: n1, State: storage.NodeRemoved}, storage.KindConflict, "groups 1", "have moved")
	f.ok(SetNodeState{Node: n1, State: storage.NodeDown}) // it drains all the same
	f.refused(SetNodeState{Node: n1, State: storage.NodeRemoved}, storage.KindConflict, "only copy of groups 1")
	f.ok(SetNodeState{Node: n1, State: storage.NodeUp})
	f.refused(SetNodeState{Node: 9, State: storage.NodeUp}, storage.KindNotFound)
	f.refused(SetNodeState{Node: n1, State: "asleep"}, storage.KindInvalid)

	g, _ := f.s.Group(1)
	key := f.ok(PlanReplica{1, n2, storeID(2)}).Replica
	f.ok(SetReplica{Group: 1, Key: key, Role: storage.RoleVoter})
	f.ok(SetReplica{Group: 1, Key: g.Replicas[0].Key, Role: storage.RoleLeaving})
	f.ok(RemoveReplica{1, g.Replicas[0].Key})
	f.ok(SetNodeState{Node: n1, State: storage.NodeRemoved}) // up, and empty
	f.refused(drain, storage.KindConflict, "removed")
	if n, _ := f.s.Node(n1); n.Intent != storage.IntentServe {
		t.Errorf("a removed node is to %s", n.Intent)
	}
	f.refused(SetNodeState{Node: n1, State: storage.NodeUp}, storage.KindConflict, "for ever")
	f.refused(AddNode{Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(1), CapacityBytes: 0}}}, storage.KindConflict,
		"empty data directory")
	f.ok(AddNode{Name: "n1", Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(3), CapacityBytes: 0}}}) // the name is free
}

// TestIntents: maintenance has an end, and what one person wants is not ended by what another did not know of.
func TestIntents(t *testing.T) {
	f := newFixture(t)
	n1 := f.node(1)
	f.node(2)
	want := func(intent storage.NodeIntent, until time.Time) {
		t.Helper()
		if n, _ := f.s.Node(n1); n.Intent != intent || !n.IntentUntil.Equal(until) {
			t.Errorf("the node is to %q until %v, want %q until %v", n.Intent, n.IntentUntil, intent, until)
		}
	}
	end := testTime.Add(time.Hour)
	maintain := SetNodeIntent{Node: n1, Intent: storage.IntentMaintenance, Until: end}
	f.refused(SetNodeIntent{Node: n1, Intent: storage.IntentMaintenance}, storage.KindInvalid, "needs an end")
	f.refused(SetNodeIntent{Node: n1, Intent: storage.IntentDrain, Until: end}, storage.KindInvalid, "only maintenance")
	f.refused(SetNodeIntent{Node: n1, Intent: "sleep"}, storage.KindInvalid)
	f.refused(SetNodeIntent{Node: 9, Intent: storage.IntentDrain}, storage.KindNotFound)
	f.ok(maintain)
	want(storage.IntentMaintenance, end)
	longer := maintain
	longer.Until = end.Add(time.Hour)
	f.ok(longer)
	f.refused(SetNodeIntent{Node: n1, From: storage.IntentMaintenance, Ended: end}, storage.KindConflict, "another end")
	f.refused(SetNodeIntent{Node: n1, From: storage.IntentDrain}, storage.KindConflict, "not draining, but maintenance")
	want(storage.IntentMaintenance, longer.Until)
	f.ok(SetNodeIntent{Node: n1, Intent: storage.IntentDrain}) // it is not to come back after all
	f.refused(maintain, storage.KindConflict, "undrain n1")
	f.ok(SetNodeIntent{Node: n1, From: storage.IntentDrain})
	f.ok(SetNodeIntent{Node: n1, From: storage.IntentDrain}) // again
	want(storage.IntentServe, time.Time{})
	f.ok(maintain)
	f.ok(UpdateNode{Node: n1, Name: "n1", Addrs: storage.Addrs{Peer: "h:9"}, Stores: []storage.Store{{ID: storeID(1)}}}) // it starts anew
	want(storage.IntentMaintenance, end)
	f.ok(SetNodeIntent{Node: n1, From: storage.IntentMaintenance, Ended: end})
	want(storage.IntentServe, time.Time{})
}

// TestDrainLeavesEnough: a node does not drain when the others could not hold as many copies as there are to be now, whether the groups have
// grown to that already or not.
func TestDrainLeavesEnough(t *testing.T) {
	f := newFixture(t)
	for i := range byte(3) {
		f.node(i + 1)
	}
	f.group(1)
	f.refused(SetNodeIntent{Node: 1, Intent: storage.IntentDrain}, storage.KindConflict, "2 other nodes would remain for groups of 3 replicas")
	f.node(4)
	f.ok(SetNodeIntent{Node: 1, Intent: storage.IntentDrain})
	f.refused(SetNodeIntent{Node: 2, Intent: storage.IntentDrain}, storage.KindConflict, "2 other nodes would remain for groups of 3 replicas")
}

// TestSilence: the time since when a node is silent is that of its first silence, and ends when it is up.
func TestSilence(t *testing.T) {
	f := newFixture(t)
	n := f.node(1)
	since := func(want time.Time) {
		t.Helper()
		if n, _ := f.s.Node(n); !n.SilentSince.Equal(want) {
			t.Errorf("silent since %v, want %v", n.SilentSince, want)
		}
	}
	f.ok(SetNodeState{Node: n, State: storage.NodeSuspect, Since: testTime})
	f.ok(SetNodeState{Node: n, State: storage.NodeDown, Since: testTime.Add(time.Minute)})
	since(testTime)
	f.ok(SetNodeState{Node: n, State: storage.NodeUp})
	since(time.Time{})
	f.ok(SetNodeState{Node: n, State: storage.NodeDown}) // by a leader of an earlier release
	since(time.Time{})
}

func TestGroupsAndReplicas(t *testing.T) {
	f := newFixture(t)
	n1, n2, n3 := f.node(1), f.node(2), f.node(3)
	add := AddGroup{1, n1, storeID(1)}
	f.refused(AddGroup{2, n1, storeID(1)}, storage.KindConflict, "next group is 1")
	f.refused(AddGroup{1, n1, storeID(2)}, storage.KindNotFound, "no store")
	f.ok(add)
	f.ok(add)
	f.refused(AddGroup{1, n2, storeID(2)}, storage.KindExists)
	f.refused(AddGroup{0, n2, storeID(2)}, storage.KindInvalid, "catalog")
	f.refused(PlanReplica{1, n2, storeID(2)}, storage.KindConflict, "being created")
	f.ok(SetGroupReady{1})
	plan := PlanReplica{1, n2, storeID(2)}
	key := f.ok(plan).Replica
	if again := f.ok(plan).Replica; again != key || key.Incarnation != 2 {
		t.Fatalf("planned %v, then %v", key, again)
	}
	f.refused(PlanReplica{1, n1, storeID(2)}, storage.KindConflict, "different nodes")
	f.ok(SetNodeState{Node: n3, State: storage.NodeSuspect})
	f.refused(PlanReplica{1, n3, storeID(3)}, storage.KindConflict, "suspect")

	g, _ := f.s.Group(1)
	first := g.Replicas[0].Key
	f.refused(SetReplica{Group: 1, Key: first, Role: storage.RoleLeaving}, storage.KindConflict, "last voter")
	f.refused(RemoveReplica{1, first}, storage.KindConflict, "configuration first")
	f.ok(SetReplica{Group: 1, Key: key, Role: storage.RoleLearner})
	f.refused(RemoveReplica{1, key}, storage.KindConflict)
	f.ok(SetReplica{Group: 1, Key: key, Role: storage.RoleVoter})
	f.refused(SetReplica{Group: 1, Key: key, Role: storage.RoleLearner}, storage.KindConflict, "not demoted")
	f.refused(SetReplica{Group: 1, Key: key, Role: storage.RolePulling}, storage.KindInvalid)
	f.ok(SetReplica{Group: 1, Key: first, Role: storage.RoleLeaving})
	f.refused(SetReplica{Group: 1, Key: first, Role: storage.RoleVoter}, storage.KindConflict, "leaves")
	f.refused(SetReplica{Group: 1, Key: first, Role: storage.RoleLearner, Stays: true}, storage.KindInvalid, "voter")
	f.ok(SetReplica{Group: 1, Key: first, Role: storage.RoleVoter, Stays: true})
	f.ok(SetReplica{Group: 1, Key: first, Role: storage.RoleLeaving})
	f.refused(PlanReplica{1, n1, storeID(1)}, storage.KindConflict, "leaving")
	f.ok(RemoveReplica{1, first})
	f.ok(RemoveReplica{1, first})
	if back := f.ok(PlanReplica{1, n1, storeID(1)}).Replica; back.Incarnation != 3 {
		t.Fatalf("the store came back as %v, want incarnation 3", back)
	}
	f.refused(RemoveReplica{1, storage.ReplicaKey{Store: storeID(1), Incarnation: 9}}, storage.KindNotFound)
}

func TestVolumes(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	create := CreateVolume{Name: "web-data", SizeBytes: 1 << 30, RequestID: "r1", At: testTime}
	f.refused(create, storage.KindUnavailable, "storagectl status")
	f.group(1)
	v := *f.ok(create).Volume
	if again := *f.ok(create).Volume; again.ID != v.ID {
		t.Fatalf("the request id made volume %v and then %v", v.ID, again.ID)
	}
	other := create
	other.SizeBytes *= 2
	f.refused(other, storage.KindConflict, "new request id")
	other.RequestID = "r2"
	f.refused(other, storage.KindExists, "another name")
	f.refused(CreateVolume{Name: "Upper", SizeBytes: 4096}, storage.KindInvalid, "lower-case")
	f.refused(CreateVolume{Name: "odd", SizeBytes: 4097}, storage.KindInvalid, "8192")
	f.refused(CreateVolume{Name: "huge", SizeBytes: storage.MaxVolumeBytes + 4096}, storage.KindInvalid, "256 TiB")

	f.refused(ResizeVolume{Volume: storage.ByName("web-data"), SizeBytes: 4096}, storage.KindInvalid, "cannot shrink")
	f.refused(ResizeVolume{Volume: storage.ByName("nope"), SizeBytes: 4096}, storage.KindNotFound, "volume list")
	f.refused(ResizeVolume{SizeBytes: 4096}, storage.KindInvalid)
	f.ok(ResizeVolume{Volume: storage.ByName("web-data"), SizeBytes: 2 << 30})
	if r, changed := f.do(ResizeVolume{Volume: storage.ByID(v.ID), SizeBytes: 2 << 30}); r.Err != nil || changed || r.Volume.SizeBytes != 2<<30 {
		t.Fatalf("again: %+v, changed: %v", r, changed)
	}

	f.refused(FinishDelete{v.ID}, storage.KindConflict)
	f.ok(DeleteVolume{storage.ByName("web-data")})
	f.ok(DeleteVolume{storage.ByID(v.ID)})
	f.refused(DeleteVolume{storage.ByName("web-data")}, storage.KindNotFound)
	f.refused(ResizeVolume{Volume: storage.ByID(v.ID), SizeBytes: 4 << 30}, storage.KindConflict, "being deleted")
	f.refused(create, storage.KindConflict) // its volume is being deleted
	v2 := f.volume("web-data")              // the name is free at once
	f.ok(FinishDelete{v.ID})
	f.ok(FinishDelete{v.ID})
	f.refused(FinishDelete{99}, storage.KindNotFound)
	if got, ok := f.s.VolumeByName("web-data"); !ok || got.ID != v2.ID || v2.ID == v.ID {
		t.Fatalf("the name finds %+v, want volume %v", got, v2.ID)
	}
}

func TestVolumeLimits(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	f.group(1)
	limits := func(iops, bytes int64) storage.VolumeLimits {
		return storage.VolumeLimits{MaxIOPS: iops, MaxBytesPerSecond: bytes}
	}
	create := CreateVolume{Name: "web", SizeBytes: 1 << 30, RequestID: "r", Limits: limits(500, 0), At: testTime}
	v := f.ok(create).Volume
	if f.ok(create).Volume.ID != v.ID || v.Limits != create.Limits {
		t.Fatalf("made %+v", v)
	}
	other := create
	other.Limits.MaxIOPS = 600
	f.refused(other, storage.KindConflict, "another volume")

	n := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		iops, bytes *int64
		want        storage.VolumeLimits
		changes     bool
	}{
		{nil, nil, limits(500, 0), false},
		{n(500), nil, limits(500, 0), false},
		{nil, n(2 << 20), limits(500, 2<<20), true},
		{n(0), nil, limits(0, 2<<20), true},
		{n(40), n(0), limits(40, 0), true},
	} {
		revision := v.Revision
		r, changed := f.do(SetVolumeLimits{Volume: storage.ByName("web"), LimitsChange: storage.LimitsChange{MaxIOPS: c.iops, MaxBytesPerSecond: c.bytes}})
		if r.Err != nil || r.Volume.Limits != c.want || changed != c.changes || (r.Volume.Revision > revision) != c.changes {
			t.Fatalf("%+v: got %+v, changed: %v", c, r, changed)
		}
		v = r.Volume
	}
	for _, bad := range []storage.LimitsChange{{MaxIOPS: n(-1)}, {MaxIOPS: n(9)}, {MaxIOPS: n(2e9)}, {MaxBytesPerSecond: n(1<<20 - 1)},
		{MaxBytesPerSecond: n(1<<40 + 1)}} {
		f.refused(SetVolumeLimits{storage.ByName("web"), bad}, storage.KindInvalid, "no limit")
	}
	f.refused(CreateVolume{Name: "bad", SizeBytes: 4096, Limits: limits(1, 0)}, storage.KindInvalid, "no limit")
	f.refused(SetVolumeLimits{Volume: storage.ByName("nope")}, storage.KindNotFound, "volume list")
	f.refused(SetVolumeLimits{}, storage.KindInvalid)
	f.ok(DeleteVolume{storage.ByName("web")})
	f.refused(SetVolumeLimits{Volume: storage.ByID(v.ID)}, storage.KindConflict, "being deleted")
}

func TestVolumeLabels(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	f.group(1)
	type labels = map[string]string
	create := CreateVolume{Name: "web", SizeBytes: 1 << 30, RequestID: "r", Labels: labels{"env": "prod"}, At: testTime}
	v := f.ok(create).Volume
	if f.ok(create).Volume.ID != v.ID || !maps.Equal(v.Labels, create.Labels) {
		t.Fatalf("made %+v", v)
	}
	other := create
	other.Labels = labels{"env": "test"}
	f.refused(other, storage.KindConflict, "another volume")

	change := func(set labels, remove ...string) SetVolumeLabels {
		return SetVolumeLabels{Volume: storage.ByName("web"), LabelChange: storage.LabelChange{Set: set, Remove: remove}}
	}
	for _, c := range []struct {
		SetVolumeLabels
		want    labels
		changes bool
	}{
		{change(nil), labels{"env": "prod"}, false},
		{change(labels{"env": "prod"}, "nosuch"), labels{"env": "prod"}, false},
		{change(labels{"team": "", "env": "test"}), labels{"team": "", "env": "test"}, true},
		{change(labels{"tier": "1"}, "team"), labels{"env": "test", "tier": "1"}, true},
		{change(nil, "env", "tier"), nil, true},
		{change(nil, "env"), nil, false},
	} {
		revision := v.Revision
		r, changed := f.do(c.SetVolumeLabels)
		if r.Err != nil || !maps.Equal(r.Volume.Labels, c.want) || changed != c.changes || (r.Volume.Revision > revision) != c.changes {
			t.Fatalf("%+v: got %+v, changed: %v", c, r, changed)
		}
		v = r.Volume
	}
	many := labels{}
	for i := range storage.MaxLabels {
		many[fmt.Sprint("k", i)] = "v"
	}
	f.ok(change(many))
	before, _ := f.s.VolumeByName("web")
	f.refused(change(labels{"more": "v"}), storage.KindInvalid, "volume web", "65 labels", "remove some first")
	if after, _ := f.s.VolumeByName("web"); !maps.Equal(after.Labels, before.Labels) || after.Revision != before.Revision {
		t.Errorf("a change that was refused made %+v", after)
	}
	f.ok(change(labels{"more": "v"}, "k0"))
	f.refused(change(labels{"a b": "v"}), storage.KindInvalid, `label "a b"`)
	f.refused(change(nil, "/"), storage.KindInvalid, `label "/"`)
	f.refused(CreateVolume{Name: "bad", SizeBytes: 4096, Labels: labels{"a": "-"}}, storage.KindInvalid, `label "a"`)
	f.refused(SetVolumeLabels{Volume: storage.ByName("nope")}, storage.KindNotFound, "volume list")
	f.refused(SetVolumeLabels{}, storage.KindInvalid)
	f.ok(DeleteVolume{storage.ByName("web")})
	f.refused(SetVolumeLabels{Volume: storage.ByID(v.ID)}, storage.KindConflict, "being deleted")
}

// What a node of version 1 knows is written as it knows it.
func TestLowestVersion(t *testing.T) {
	limited := storage.VolumeLimits{MaxIOPS: 100}
	for _, c := range []struct {
		command Command
		version string
	}{
		{CreateVolume{Name: "v", SizeBytes: 4096}, `{"v":1,`},
		{CreateVolume{Name: "v", SizeBytes: 4096, Limits: limited}, `{"v":2,`},
		{CreateVolume{Name: "v", SizeBytes: 4096, Groups: 1}, `{"v":2,`},
		{CreateVolume{Name: "v", SizeBytes: 4096, ProvisionPercent: 100}, `{"v":4,`},
		{ResizeVolume{Volume: storage.ByName("v"), SizeBytes: 4096}, `{"v":1,`},
		{ResizeVolume{Volume: storage.ByName("v"), SizeBytes: 4096, ProvisionPercent: 100}, `{"v":4,`},
		{SetVolumeLimits{Volume: storage.ByName("v")}, `{"v":2,`},
		{CreateVolume{Name: "v", SizeBytes: 4096, ProvisionPercent: 100, Labels: map[string]string{"k": ""}}, `{"v":5,`},
		{SetVolumeLabels{Volume: storage.ByName("v")}, `{"v":5,`},
		{SetReplica{Group: 1, Key: storage.ReplicaKey{Store: storeID(1), Incarnation: 2}, Role: storage.RoleVoter}, `{"v":1,`},
		{SetReplica{Group: 1, Key: storage.ReplicaKey{Store: storeID(1), Incarnation: 2}, Role: storage.RoleVoter, ConfigIndex: 9}, `{"v":3,`},
		{onHost("a", storage.AccessShared), `{"v":1,`},
		{Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: "a", Kind: storage.HolderHost}, Access: storage.AccessReaders, ReadOnly: true}, `{"v":4,`},
	} {
		b, err := Encode(c.command)
		if err != nil || !strings.HasPrefix(string(b[min(len(b), commandSealBytes):]), c.version) || strings.Contains(string(b), "limits\":{}") {
			t.Errorf("%#v is written as %s, %v", c.command, b, err)
		}
	}
}

func TestStripeGroups(t *testing.T) {
	for size, want := range map[int64]int{4096: 1, StripeBytes: 1, StripeBytes + 4096: 2, 3 * StripeBytes: 4, 8 * StripeBytes: 8,
		storage.MaxVolumeBytes: MaxVolumeGroups} {
		if got := StripeGroups(size); got != want {
			t.Errorf("a volume of %d bytes is striped over %d groups, want %d", size, got, want)
		}
	}
}

// Small volumes lie in one group each, in all groups alike, by what they may fill and not by their number.
func TestSmallVolumesSpread(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	for range 4 {
		f.group(1)
	}
	made := func(name string, size int64, groups int) storage.Volume {
		r := f.ok(CreateVolume{Name: name, SizeBytes: size, Groups: groups, At: testTime})
		return *r.Volume
	}
	large := made("large", 40<<30, 1)
	if len(large.Groups) != 1 {
		t.Fatalf("striped over %d groups, want 1", len(large.Groups))
	}
	count := map[storage.GroupID]int{}
	for i := range 9 {
		count[made("small"+string(rune('0'+i)), 10<<30, 1).Groups[0]]++
	}
	if count[large.Groups[0]] != 0 {
		t.Errorf("%d small volumes lie beside the large one, which fills as much as four of them", count[large.Groups[0]])
	}
	if len(count) != 3 {
		t.Errorf("small volumes lie in %v, want three each in the other three groups", count)
	}
	if v := made("wide", 40<<30, 8); len(v.Groups) != 4 {
		t.Errorf("striped over %d groups of 4 when 8 were asked for", len(v.Groups))
	}
	f.refused(CreateVolume{Name: "odd", SizeBytes: 4096, Groups: 3, At: testTime}, storage.KindInvalid)
}

func TestStripesSpread(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	for range 6 {
		f.group(1)
	}
	firsts := map[storage.GroupID]int{}
	for i := range 6 {
		v := f.volume("v" + string(rune('0'+i)))
		if len(v.Groups) != 4 {
			t.Fatalf("striped over %d of 6 groups, want 4", len(v.Groups))
		}
		seen := map[storage.GroupID]bool{}
		for _, g := range v.Groups {
			seen[g] = true
		}
		if len(seen) != 4 {
			t.Fatalf("groups %v are not distinct", v.Groups)
		}
		firsts[v.Groups[0]]++
	}
	if len(firsts) != 6 {
		t.Fatalf("six volumes begin in %v", firsts)
	}
}

func TestSessions(t *testing.T) {
	f := newFixture(t)
	n1, n2 := f.node(1), f.node(2)
	f.group(1)
	v := f.volume("v")
	open := f.attached(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Node: n1}, Instance: "a", At: testTime})
	r := f.ok(open)
	if r.Session.ID != 1 || r.Volume.Generation != 1 || r.Volume.Epoch != 1 || len(r.Predecessors) != 0 {
		t.Fatalf("got %+v", r)
	}
	if again := f.ok(open); again.Session.ID != 1 {
		t.Fatalf("a retry opened session %v", again.Session.ID)
	}

	after := open
	after.After = 1
	if r := f.ok(after); r.Session.ID != 2 || len(r.Predecessors) != 1 || r.Predecessors[0].ID != 1 {
		t.Fatalf("after session 1: %+v", r)
	}
	after.After = 3
	f.refused(after, storage.KindInvalid, "never given out")
	f.ok(CloseSession{1})
	f.ok(CloseSession{1})
	f.refused(CloseSession{77}, storage.KindNotFound)

	restarted := open
	restarted.Instance = "b"
	if r := f.ok(restarted); r.Session.ID != 3 || len(r.Predecessors) != 1 || r.Predecessors[0].ID != 2 {
		t.Fatalf("new instance: %+v", r)
	}
	reader := restarted
	reader.ReadOnly = true
	if r := f.ok(reader); len(r.Predecessors) != 1 || r.Predecessors[0].ID != 2 {
		t.Fatalf("a reader beside a writer: %+v", r)
	}
	f.ok(CloseSession{4})
	other := f.attached(OpenSession{Volume: storage.ByID(v.ID), Gateway: Gateway{Node: n2}, Instance: "c", ReadOnly: true, At: testTime})
	if r := f.ok(other); r.Session.ID != 5 || len(r.Predecessors) != 0 || !r.Session.ReadOnly {
		t.Fatalf("other node: %+v", r)
	}
	f.refused(DeleteVolume{storage.ByName("v")}, storage.KindConflict, "node n1, node n2", "disconnect")

	f.ok(ExpireSessions{[]storage.SessionID{2, 3, 5, 99}})
	if r := f.ok(restarted); r.Session.ID != 6 || len(r.Predecessors) != 2 {
		t.Fatalf("after expiry: %+v", r)
	}
	f.ok(CloseSession{6})
	f.refused(DeleteVolume{storage.ByName("v")}, storage.KindConflict, "attached shared by NBD clients of node n1", "detach")
	f.ok(Detach{Volume: storage.ByName("v"), Holder: "nbd:n1"})
	f.ok(DeleteVolume{storage.ByName("v")}) // closing sessions do not hold it, nor do clients of a node that fell silent
	f.refused(open, storage.KindNotFound)
	byID := open
	byID.Volume = storage.ByID(v.ID)
	f.refused(byID, storage.KindNotFound, "being deleted")
	f.ok(FinishDelete{v.ID})
	if n := len(f.s.Sessions()); n != 0 {
		t.Fatalf("%d sessions outlived their volume", n)
	}

	f.volume("w")
	f.refused(OpenSession{Volume: storage.ByName("w"), Gateway: Gateway{Node: 9}, Attachment: 1, Instance: "x"}, storage.KindPermission)
	f.refused(OpenSession{Volume: storage.ByName("w"), Attachment: 1, Instance: "x"}, storage.KindInvalid)
	f.refused(OpenSession{Volume: storage.ByName("w"), Gateway: Gateway{Node: n1}, Attachment: 1}, storage.KindInvalid, "instance")
	f.refused(OpenSession{Volume: storage.ByName("w"), Gateway: Gateway{Node: n1}, Instance: "x"}, storage.KindInvalid, "attach")
	if r := f.ok(f.attached(OpenSession{Volume: storage.ByName("w"), Gateway: Gateway{Host: "web-1"}, Instance: "x"})); r.Session.ID != 7 {
		t.Fatalf("got session %v, want 7: ids ascend", r.Session.ID)
	}
	f.refused(DeleteVolume{storage.ByName("w")}, storage.KindConflict, "host web-1")
}

func TestSessionsOfAVolumeAreBounded(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	f.group(1)
	f.volume("v")
	for i := range MaxSessionsPerVolume {
		f.ok(f.attached(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "h" + string(rune('a'+i%26)) + string(rune('a'+i/26))},
			Instance: "i"}))
	}
	f.refused(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "haa"}, Attachment: 1, Instance: "j"}, storage.KindConflict,
		"and others", "disconnect")
	f.refused(Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: "one-more", Kind: storage.HolderHost}, Access: storage.AccessShared}, storage.KindConflict,
		"256 times", "detach")
}

func TestDecodeRefuses(t *testing.T) {
	big := `{"v":1,"cmd":"create_volume","body":{"name":"` + strings.Repeat("a", MaxCommandBytes) + `"}}`
	for _, c := range []struct {
		in   string
		kind storage.Kind
	}{
		{``, storage.KindInvalid},
		{`{}`, storage.KindUnsupported},
		{fmt.Sprintf(`{"v":%d,"cmd":"close_session","body":{"session":1}}`, Version+1), storage.KindUnsupported},
		{fmt.Sprintf(`{"v":%d,"cmd":"raise_version","body":{"to":%[1]d}}`, Version+1), storage.KindUnsupported},
		{`{"v":6,"cmd":"raise_version","body":{"to":0}}`, storage.KindUnsupported},
		{`{"v":5,"cmd":"raise_version","body":{"to":5}}`, storage.KindInvalid},
		{`{"v":1,"cmd":"close_session","body":{"session":1},"x":1}`, storage.KindInvalid},
		{`{"v":1,"cmd":"close_session","body":{"session":1,"x":1}}`, storage.KindInvalid},
		{`{"v":1,"cmd":"close_session","body":{"session":-1}}`, storage.KindInvalid},
		{`{"v":1,"cmd":"close_session","body":{"session":1}} {}`, storage.KindInvalid},
		{`{"v":1,"cmd":"take_over","body":{}}`, storage.KindUnsupported},
		{`{"v":1,"cmd":"format_disk","body":{}}`, storage.KindUnsupported},
		{`{"v":1,"cmd":"add_node","body":{"addrs":{"peer":"h:1"},"stores":[{"id":"zz","capacity_bytes":1}],"name":"","at":"2026-01-02T03:04:05Z"}}`, storage.KindInvalid},
		{`{"v":1,"cmd":"add_node","body":{"stores":[{"id":"d1000000-0000-0000-0000-000000000001","capacity_bytes":1,"x":1}]}}`, storage.KindInvalid},
		{`{"v":1,"cmd":"create_volume"}`, storage.KindInvalid},
		{`{"v":1,"cmd":"set_volume_limits","body":{"volume":{"name":"v"}}}`, storage.KindInvalid},
		{`{"v":1,"cmd":"set_replica","body":{"group":1,"key":"nonsense","role":"voter"}}`, storage.KindInvalid},
		{big, storage.KindInvalid},
	} {
		if _, err := Decode(sealCommand([]byte(c.in))); storage.KindOf(err) != c.kind {
			t.Errorf("%.80s: got %v, want %v", c.in, err, c.kind)
		}
		if _, err := Decode([]byte(c.in)); err == nil {
			t.Errorf("%.80s is accepted without a checksum", c.in)
		}
	}
}

// TestEveryFlippedBitOfACommand guards what a node applies (tried: without the comparison in unsealCommand a flipped digit is
// another volume, size or node, on that node only): a command is what its proposer made, or no command.
func TestEveryFlippedBitOfACommand(t *testing.T) {
	b, err := Encode(ResizeVolume{Volume: storage.ByID(17), SizeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeEntry(b); err != nil || VerifyEntry(b) != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	before, _ := f.s.Snapshot()
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := DecodeEntry(b); storage.KindOf(err) != storage.KindCorrupt || VerifyEntry(b) == nil {
			t.Errorf("bit %d flipped: %v", bit, err)
		}
		if r := f.s.Apply(f.index+1, b); r.Err == nil {
			t.Errorf("bit %d flipped and applied", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	if after, _ := f.s.Snapshot(); !bytes.Equal(before, after) { // Applied included
		t.Error("what cannot be decoded has changed the state")
	}
}

// TestOldEntries: logs hold commands from before they were sealed, and commands that are refused; both are applied. What
// cannot be decoded is not.
func TestOldEntries(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	f.group(1)
	if r := f.s.Apply(f.index+1, []byte(`{"v":1,"cmd":"create_volume","body":{"name":"old","size_bytes":4096,"at":"2026-01-02T03:04:05Z"}}`)); r.Err != nil {
		t.Fatal(r.Err)
	}
	if _, ok := f.s.VolumeByName("old"); !ok {
		t.Fatal("the volume is not there")
	}
	refused := []byte(`{"v":1,"cmd":"create_volume","body":{"name":"","size_bytes":1,"at":"2026-01-02T03:04:05Z"}}`)
	for _, b := range [][]byte{refused, sealCommand(refused)} {
		if _, err := DecodeEntry(b); err != nil {
			t.Errorf("a refusal is taken for damage: %v", err)
		}
		applied := f.s.Applied()
		if r := f.s.Apply(applied+1, b); storage.KindOf(r.Err) != storage.KindInvalid || f.s.Applied() != applied+1 {
			t.Errorf("%v, applied %d", r.Err, f.s.Applied())
		}
	}
	for in, kind := range map[string]storage.Kind{
		`{"v":1,"cmd":"create_volume","body":{"name":"x"`: storage.KindInvalid, `{"v":10,"cmd":"create_volume","body":{}}`: storage.KindUnsupported,
		`{"v":1,"cmd":"format_disk","body":{}}`: storage.KindUnsupported, "\x00\x00\x00\x00": storage.KindCorrupt, "": storage.KindCorrupt,
	} {
		if _, err := DecodeEntry([]byte(in)); storage.KindOf(err) != kind {
			t.Errorf("%s: %v, want %v", in, err, kind)
		}
	}
}

func TestApplyPanicsOnAnOldIndex(t *testing.T) {
	f := newFixture(t)
	defer func() {
		if recover() == nil {
			t.Fatal("command 1 was applied twice")
		}
	}()
	f.s.ApplyCommand(1, CloseSession{1})
}

func TestResultTravels(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	f.group(1)
	f.volume("v")
	for _, c := range []Command{
		f.attached(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Node: 1}, Instance: "a", At: testTime}),
		Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(1, "n1", false), Access: storage.AccessShared},
		Detach{Volume: storage.ByName("v"), Holder: "nbd:n1", At: testTime},
		CreateVolume{Name: "v", SizeBytes: 4096},
		PlanReplica{1, 1, storeID(1)},
	} {
		r, _ := f.do(c)
		b, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var got Result
		if err := got.UnmarshalJSON(b); err != nil {
			t.Fatal(err)
		}
		b2, _ := got.MarshalJSON()
		if string(b) != string(b2) {
			t.Errorf("%s came back as %s", b, b2)
		}
		if (r.Err == nil) != (got.Err == nil) || r.Err != nil && !errors.Is(got.Err, &storage.Error{Kind: r.Err.Kind}) {
			t.Errorf("error %v came back as %v", r.Err, got.Err)
		}
	}
}

// TestKindsOfResults: every kind of refusal arrives as what it was, and none, nor one that is not known here, as no refusal.
func TestKindsOfResults(t *testing.T) {
	for _, kind := range storage.Kinds() {
		b, err := Result{Err: storage.E("create", kind, "volume v", nil)}.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var got Result
		if err := got.UnmarshalJSON(b); err != nil || storage.KindOf(got.Err) != kind {
			t.Errorf("%v came back as %v: %v", kind, got.Err, err)
		}
	}
	for _, text := range []string{`{"err":{"op":"create","kind":0}}`, `{"err":{"op":"create","kind":99}}`} {
		var got Result
		if err := got.UnmarshalJSON([]byte(text)); err != nil || storage.KindOf(got.Err) != storage.KindInternal {
			t.Errorf("%s is %v: %v", text, got.Err, err)
		}
	}
}

// TestCloneKeepsItsSessions: the index of a clone does not share memory that the original writes.
func TestCloneKeepsItsSessions(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	f.group(1)
	v := f.volume("v")
	for _, host := range []string{"a", "b", "c"} {
		f.ok(f.attached(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: host}, Instance: "i"}))
	}
	clone := f.s.Clone()
	f.ok(CloseSession{1})
	f.ok(f.attached(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "d"}, Instance: "i"}))
	f.ok(Detach{Volume: storage.ByName("v"), Holder: "b"})
	if n := len(clone.AttachmentsOf(v.ID)); n != 3 {
		t.Fatalf("the clone has %d attachments", n)
	}
	if n := len(clone.SessionsOf(v.ID)); n != 3 || clone.Check() != nil {
		t.Fatalf("the clone has %d sessions (%v)", n, clone.Check())
	}
}
