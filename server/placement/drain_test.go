package placement_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

func (d *driver) drain(id storage.NodeID) {
	d.must(catalog.SetNodeIntent{Node: id, Intent: storage.IntentDrain})
}

// fewest carries steps out until nothing is left to do, and returns the smallest number of voters that the group had on the way.
func (d *driver) fewest(t *testing.T) int {
	t.Helper()
	v, _ := d.w.Voters(1)
	least := len(v)
	for range 100 {
		g, _ := d.s.Group(1)
		s := placement.Next(d.view(), g)
		if s.Kind == placement.StepNone {
			return least
		}
		if err := d.carryOut(s); err != nil {
			t.Fatal(err)
		}
		v, _ := d.w.Voters(1)
		least = min(least, len(v))
	}
	t.Fatal("it does not end")
	return 0
}

// TestDrain: what a node holds goes to another one, and never is there a voter fewer on the way. Then the node may be removed although it
// is up.
func TestDrain(t *testing.T) {
	d := three(t)
	d.addNode("")
	d.drain(2)
	if n := d.fewest(t); n != 3 {
		t.Errorf("on the way there were %d voters", n)
	}
	d.wantWhole(t, 1, 3, 4)
	if d.w.Holds(2, 1) {
		t.Error("node 2 holds what has moved")
	}
	d.must(catalog.SetNodeState{Node: 2, State: storage.NodeRemoved})
}

// TestDrainOfANodeThatEnds: a node ends while it drains. What it held is replaced, and it can be removed.
//
// Guards hole H9: a node that drained was never down, so its replicas were never lost, and it could not be removed.
func TestDrainOfANodeThatEnds(t *testing.T) {
	for after := range 6 {
		d := three(t)
		d.addNode("")
		d.drain(2)
		d.take(t, after)
		d.down(2, false)
		d.settle()
		d.wantWhole(t, 1, 3, 4)
		d.must(catalog.SetNodeState{Node: 2, State: storage.NodeRemoved})
	}
}

// TestDrainOfTheOnlyCopy: with two nodes there is one voter, which is not given up before the other one votes.
func TestDrainOfTheOnlyCopy(t *testing.T) {
	d := newDriver(t, 1)
	d.addNode("")
	d.addGroups(1)
	d.settle()
	d.addNode("")
	d.drain(1)
	if n := d.fewest(t); n != 1 {
		t.Errorf("on the way there were %d voters", n)
	}
	d.wantWhole(t, 2)
	if v := d.w.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// TestDrainWhileAnotherIsLost: fewer voters are wanted on the nodes that are left, and the one that drains keeps its own until there is
// another node all the same.
//
// Guards I1: planner.wanted; with View.Wanted in its place the third copy was given up.
func TestDrainWhileAnotherIsLost(t *testing.T) {
	d := three(t)
	d.addNode("")
	d.drain(2)
	d.down(4, true)
	d.must(catalog.SetNodeState{Node: 4, State: storage.NodeRemoved})
	d.settle()
	d.wantWhole(t, 1, 2, 3)
	d.addNode("")
	d.settle()
	d.wantWhole(t, 1, 3, 5)
}

// TestUndrain: after whatever step the draining ends, the group ends whole. The replica stays unless another one had caught up.
func TestUndrain(t *testing.T) {
	for after := range 11 {
		d := three(t)
		d.addNode("")
		d.drain(2)
		d.take(t, after)
		d.must(catalog.SetNodeIntent{Node: 2, From: storage.IntentDrain})
		if n := d.fewest(t); n < 3 {
			t.Errorf("after %d steps: %d voters on the way", after, n)
		}
		if after < 5 {
			d.wantWhole(t, 1, 2, 3)
		} else {
			d.wantWhole(t, 1, 3, 4)
		}
	}
}

// TestUndrainWithoutTheOther: the draining ends as well as the node that was to take the replica. The replica stays, and votes as before.
func TestUndrainWithoutTheOther(t *testing.T) {
	for after := range 5 {
		d := three(t)
		d.addNode("")
		d.drain(2)
		d.take(t, after)
		d.down(4, false)
		d.must(catalog.SetNodeIntent{Node: 2, From: storage.IntentDrain})
		d.settle()
		d.wantWhole(t, 1, 2, 3)
	}
}

// TestDrainOntoADrain: the node that is to take a replica drains as well before it has it. The replica is not given up for it.
func TestDrainOntoADrain(t *testing.T) {
	for after := range 5 {
		d := three(t)
		d.addNode("")
		d.addNode("")
		d.drain(2)
		d.take(t, after)
		d.drain(4)
		if n := d.fewest(t); n != 3 {
			t.Errorf("after %d steps: %d voters on the way", after, n)
		}
		d.wantWhole(t, 1, 3, 5)
	}
}

// TestMaintenance: a node that is down on purpose is not replaced, gets nothing new and leads nothing; afterwards it counts as lost like any
// other.
func TestMaintenance(t *testing.T) {
	d := three(t)
	d.addNode("")
	d.must(catalog.SetNodeIntent{Node: 2, Intent: storage.IntentMaintenance, Until: distant})
	v := d.view()
	if p := placement.PreferredLeaders(v.Nodes, v.Groups, nil); p[1] == 2 {
		t.Error("a node in maintenance is to lead")
	}
	if node, _, err := placement.Choose(v, []storage.Replica{{Node: 1}, {Node: 3}, {Node: 4}}, 0); err == nil {
		t.Errorf("node %v is to take a replica", node)
	}
	late := func(storage.Node) time.Duration { return time.Hour }
	for i := range v.Nodes {
		if v.Nodes[i].ID == 2 {
			v.Nodes[i].State = storage.NodeDown
		}
	}
	if away, held := placement.Away(v.Nodes, late, time.Minute); len(away) > 0 || held != "" {
		t.Errorf("away: %v (%s)", away, held)
	}
	v.Nodes[2].State = storage.NodeDown // one of the three others, which says no more about the cluster than before
	if away, held := placement.Away(v.Nodes, late, time.Minute); len(away) != 1 || !away[3] {
		t.Errorf("with node 3 down as well: away %v (%s)", away, held)
	}
	v.Nodes[2].State = storage.NodeUp
	for i, n := range v.Nodes {
		v.Nodes[i] = n.At(distant)
	}
	if away, _ := placement.Away(v.Nodes, late, time.Minute); !away[2] {
		t.Error("once its time is over, it is not away")
	}
}

var distant = time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC)

// TestMoves: a plan says where what a node holds would go, counts what it plans itself, and says what cannot move. It changes nothing.
func TestMoves(t *testing.T) {
	d := three(t)
	if m := placement.Moves(d.view(), 2); len(m) != 1 || m[0].To != 0 || !strings.Contains(m[0].Why, "no other is up with room") {
		t.Errorf("without another node: %+v", m)
	}
	stopped, thinner := placement.Without(d.view(), 2)
	if len(stopped) > 0 || !slices.Equal(thinner, []storage.GroupID{1}) {
		t.Errorf("without node 2 groups %v stop, and %v have a copy fewer", stopped, thinner)
	}
	d.down(3, false)
	if stopped, thinner = placement.Without(d.view(), 2); len(thinner) > 0 || !slices.Equal(stopped, []storage.GroupID{1}) {
		t.Errorf("without nodes 2 and 3 groups %v stop, and %v have a copy fewer", stopped, thinner)
	}
	d.back(3)
	d.settle()
	d.addNode("")
	before := d.view()
	if m := placement.Moves(before, 2); len(m) != 1 || m[0].To != 4 || m[0].Why != "" {
		t.Errorf("with another node: %+v", m)
	}
	if n := len(before.Groups[0].Replicas); n != 3 || before.Nodes[1].Intent != storage.IntentServe {
		t.Error("the plan was carried out")
	}
	if m := placement.Moves(before, 4); len(m) != 0 {
		t.Errorf("a node that holds nothing: %+v", m)
	}
}
