package placement_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// three returns a cluster of three nodes with one group on all of them.
func three(t *testing.T) *driver {
	d := newDriver(t, 1)
	for range 3 {
		d.addNode("")
	}
	d.addGroups(1)
	d.settle()
	d.w.Write(1, 1000, 0)
	return d
}

// wantWhole wants three voters on the given nodes, in the world and in the catalog, and nothing done wrong.
func (d *driver) wantWhole(t *testing.T, nodes ...storage.NodeID) {
	t.Helper()
	voters, leader := d.w.Voters(1)
	slices.Sort(voters)
	g, _ := d.s.Group(1)
	if !slices.Equal(voters, nodes) || leader == 0 || g.Count(storage.RoleVoter) != len(nodes) || len(g.Replicas) != len(nodes) {
		t.Errorf("voters %v, want %v; leader %v; the catalog says %v", voters, nodes, leader, g.Replicas)
	}
	if v := d.w.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// TestDamagedReplicaIsReplacedInPlace: with a replica on every node, the damaged one makes room for the new one.
func TestDamagedReplicaIsReplacedInPlace(t *testing.T) {
	for node := storage.NodeID(1); node <= 3; node++ {
		d := three(t)
		if !d.w.Damage(node, 1) {
			t.Fatal("two of three are a majority")
		}
		want := "set role, remove, drop, forget, plan, create, add learner, set role, promote, set role"
		if got := kinds(d.settle()); got != want {
			t.Errorf("node %v:\n%s\nwant\n%s", node, got, want)
		}
		d.wantWhole(t, 1, 2, 3)
		g, _ := d.s.Group(1)
		if r, _ := g.OnNode(node); r.Key != key(node, 4) {
			t.Errorf("the new replica is %v, want incarnation 4", r.Key)
		}
	}
}

// TestDamagedReplicaIsReplacedElsewhere: with a free node, the new replica votes before the damaged one goes.
func TestDamagedReplicaIsReplacedElsewhere(t *testing.T) {
	d := three(t)
	d.addNode("")
	d.w.Damage(2, 1)
	want := "set role, plan, create, add learner, set role, promote, set role, remove, drop, forget"
	if got := kinds(d.settle()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	d.wantWhole(t, 1, 3, 4)
}

// TestNothingIsGivenUpWithoutAMajority: what is left is all there is.
func TestNothingIsGivenUpWithoutAMajority(t *testing.T) {
	d := newDriver(t, 1)
	d.addNode("")
	d.addGroups(1)
	d.settle()
	d.addNode("") // two nodes: one voter
	d.w.Damage(1, 1)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("the only copy is damaged: %v", steps)
	}

	d = three(t)
	d.w.SetUp(3, false)
	d.w.Damage(2, 1)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("one of three is left: %v", steps)
	}
	d.w.SetUp(3, true) // two are: now it heals
	d.settle()
	d.wantWhole(t, 1, 2, 3)
}

// TestLaggingFollowerIsAwaited: the damaged voter is not taken out while one of the others is far behind.
func TestLaggingFollowerIsAwaited(t *testing.T) {
	d := three(t)
	_, leader := d.w.Voters(1)
	damaged := leader%3 + 1
	d.w.Damage(damaged, 1)
	d.w.Write(1, 1000, 1000)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("the only follower is 1000 entries behind: %v", steps)
	}
	d.w.Write(1, 1, 0)
	g, _ := d.s.Group(1)
	if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
		t.Fatal(err)
	}
	d.w.Write(1, 1000, 1000)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("the only follower fell behind after the damaged one was recorded as leaving: %v", steps)
	}
	d.w.Write(1, 1, 0)
	d.settle()
	d.wantWhole(t, 1, 2, 3)
}

// TestFailedDiskWaitsForAPlace: the replicas of a failed disk stay members until another store can take them.
func TestFailedDiskWaitsForAPlace(t *testing.T) {
	d := three(t)
	d.w.FailDisk(2)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("no place for another: %v", steps)
	}
	d.addNode("")
	want := "set role, plan, create, add learner, set role, promote, set role, remove, forget" // nothing to be dropped there
	if got := kinds(d.settle()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	d.wantWhole(t, 1, 3, 4)
}

// TestRemovedNodeIsReplaced: its replicas leave; a new node takes over, before or after.
func TestRemovedNodeIsReplaced(t *testing.T) {
	d := three(t)
	d.w.SetUp(2, false)
	d.must(catalog.SetNodeState{Node: 2, State: storage.NodeDown})
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("a node that is down may come back: %v", steps)
	}
	d.must(catalog.SetNodeState{Node: 2, State: storage.NodeRemoved})
	if got, want := kinds(d.settle()), "set role, remove, forget"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	d.wantWhole(t, 1, 3)
	d.addNode("")
	d.settle()
	d.wantWhole(t, 1, 3, 4)

	d = three(t)
	d.addNode("")
	d.w.SetUp(1, false)
	d.must(catalog.SetNodeState{Node: 1, State: storage.NodeDown})
	d.must(catalog.SetNodeState{Node: 1, State: storage.NodeRemoved})
	d.settle()
	d.wantWhole(t, 2, 3, 4)
}

// TestDeadLearnerIsReplaced: growth goes on with another node; what the dead one holds is dropped when it is back.
func TestDeadLearnerIsReplaced(t *testing.T) {
	d := newDriver(t, 1)
	d.addNode("")
	d.addGroups(1)
	d.settle()
	d.addNode("")
	d.addNode("")
	for g, _ := d.s.Group(1); g.Count(storage.RoleLearner) < 2; g, _ = d.s.Group(1) {
		if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
			t.Fatal(err)
		}
	}
	d.w.SetUp(3, false)
	d.must(catalog.SetNodeState{Node: 3, State: storage.NodeDown})
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("no other node is free: %v", steps)
	}
	d.addNode("")
	want := "set role, remove, forget, plan, create, add learner, set role, promote, set role, set role"
	if got := kinds(d.settle()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	d.wantWhole(t, 1, 2, 4)
	d.w.SetUp(3, true)
	d.must(catalog.SetNodeState{Node: 3, State: storage.NodeUp})
	if got, want := kinds(d.settle()), "drop"; got != want || d.w.Holds(3, 1) {
		t.Errorf("node 3 is back: %s, want %s", got, want)
	}
	d.wantWhole(t, 1, 2, 4)
}

// removed returns the nodes that were removed.
func (d *driver) removed() (ids []storage.NodeID) {
	for _, n := range d.s.Nodes() {
		if n.State == storage.NodeRemoved {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// TestHeals: whatever is damaged, fails, dies or is removed while a majority of every group is left, and whoever
// decides late, no order costs a voter that is needed, and the cluster ends whole. A node that was removed may be started again, and
// votes until it hears that it was; nothing may depend on it.
func TestHeals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDriver(t, 2)
		for range rapid.IntRange(3, 4).Draw(t, "nodes") {
			d.addNode("")
		}
		d.addGroups(2)
		d.settle()
		failed := map[storage.NodeID]bool{}
		var pending []placement.Step
		for range rapid.IntRange(5, 100).Draw(t, "steps") {
			nodes := d.s.Nodes()
			n := nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "node")]
			g := storage.GroupID(rapid.IntRange(1, 2).Draw(t, "group"))
			spares := func(g storage.GroupID) bool { return d.w.Spare(n.ID, g, d.removed()...) }
			spare := spares(1) && spares(2)
			switch rapid.IntRange(0, 14).Draw(t, "what") {
			case 14: // it moves
				group, _ := d.s.Group(g)
				if r, ok := group.OnNode(n.ID); ok && group.Count(storage.RoleVoter) == 3 && placement.Next(d.view(), group).Kind == placement.StepNone {
					_ = d.apply(catalog.SetReplica{Group: g, Key: r.Key, Role: storage.RoleLeaving})
				}
			case 13:
				intent := storage.IntentServe
				if rapid.Bool().Draw(t, "drain") {
					intent = storage.IntentDrain
				}
				_ = d.apply(catalog.SetNodeIntent{Node: n.ID, Intent: intent})
			case 0:
				if spares(g) {
					d.w.Damage(n.ID, g)
				}
			case 1:
				if spare && n.State != storage.NodeRemoved && len(failed) == 0 {
					d.w.FailDisk(n.ID)
					failed[n.ID] = true
				}
			case 2:
				if len(nodes) < 8 {
					d.addNode("")
				}
			case 3:
				if !d.w.Up(n.ID) || spare {
					d.w.SetUp(n.ID, !d.w.Up(n.ID))
				}
			case 4:
				for _, n := range nodes {
					state := storage.NodeDown
					if d.w.Up(n.ID) {
						state = storage.NodeUp
					}
					_ = d.apply(catalog.SetNodeState{Node: n.ID, From: n.State, State: state})
				}
			case 5:
				if !d.w.Up(n.ID) && spare {
					_ = d.apply(catalog.SetNodeState{Node: n.ID, State: storage.NodeRemoved})
				}
			case 12:
				d.away = map[storage.NodeID]bool{}
				for _, n := range d.s.Nodes() {
					d.away[n.ID] = n.State == storage.NodeDown
				}
			case 6:
				for _, s := range pending { // orders that arrive late; a node's own replica is never decided on late
					if s.Kind != placement.StepDrop {
						_ = d.carryOut(s)
					}
				}
				pending = nil
			default:
				v := d.view()
				for _, g := range d.s.Groups() {
					if s := placement.Next(v, g); rapid.IntRange(0, 3).Draw(t, "late") == 0 {
						pending = append(pending, s)
					} else {
						_ = d.carryOut(s)
					}
				}
			}
			if v := d.w.Violations(); len(v) > 0 {
				t.Fatalf("%v", v)
			}
		}
		for _, n := range d.s.Nodes() {
			if n, _ = d.s.Node(n.ID); n.State != storage.NodeRemoved {
				d.w.SetUp(n.ID, true)
				d.must(catalog.SetNodeState{Node: n.ID, State: storage.NodeUp})
			}
		}
		drained := map[storage.NodeID]bool{}
		for _, n := range d.s.Nodes() {
			drained[n.ID] = n.Intent == storage.IntentDrain
		}
		d.away = nil
		for _, id := range d.removed() {
			d.w.SetUp(id, false) // it ends when it hears of it
		}
		for range 3 {
			d.addNode("") // room for what failed
		}
		d.settle()
		for _, g := range d.s.Groups() {
			voters, leader := d.w.Voters(g.ID)
			if len(voters) != 3 || leader == 0 || g.Count(storage.RoleVoter) != 3 || len(g.Replicas) != 3 {
				t.Fatalf("group %v has voters %v, leader %v; the catalog says %v", g.ID, voters, leader, g.Replicas)
			}
			for _, n := range voters {
				if failed[n] || d.w.Damaged(n, g.ID) {
					t.Fatalf("group %v: the replica on node %v votes in name only", g.ID, n)
				}
				if drained[n] {
					t.Fatalf("group %v still has a voter on node %v, which drains", g.ID, n)
				}
			}
		}
		if v := d.w.Violations(); len(v) > 0 {
			t.Fatalf("%v", v)
		}
	})
}

// TestLeftoversOfBeforeARecovery: what a node holds and the catalog does not name is dropped, but not what is from before a recovery: the catalog that began
// anew may be older than it, and it may be all that is left.
//
// Guards I1: SameEra in findUnnamed.
func TestLeftoversOfBeforeARecovery(t *testing.T) {
	d := three(t)
	d.addNode("")
	v := d.view()
	held := placement.ReplicaReport{Group: 1, Key: key(4, 2), State: placement.ReplicaLeader, Last: 1000}
	r := v.Reports[4]
	r.Replicas = append(r.Replicas, held)
	v.Reports[4] = r
	for last, want := range map[storage.Incarnation]placement.StepKind{3: placement.StepDrop, 2<<20 + 3: placement.StepNone} {
		g, _ := d.s.Group(1)
		g.LastIncarnation = last
		v.Groups = []storage.Group{g}
		if s := placement.Next(v.Indexed(), g); s.Kind != want {
			t.Errorf("the last incarnation is %d: %+v, want %v", last, s, want)
		}
	}
}
