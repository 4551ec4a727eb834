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

// down has a node end, and the catalog know it; long: for so long that it counts as away.
func (d *driver) down(id storage.NodeID, long bool) {
	d.w.SetUp(id, false)
	d.must(catalog.SetNodeState{Node: id, State: storage.NodeDown})
	if d.away == nil {
		d.away = map[storage.NodeID]bool{}
	}
	d.away[id] = long
}

func (d *driver) back(id storage.NodeID) {
	d.w.SetUp(id, true)
	d.must(catalog.SetNodeState{Node: id, State: storage.NodeUp})
	delete(d.away, id)
}

// TestAwayVoterIsReplaced: the voter of a node that has been down for long stays one until another replica has caught up. When its
// node is back in the end, it drops what it holds.
func TestAwayVoterIsReplaced(t *testing.T) {
	d := three(t)
	d.addNode("")
	d.down(2, false)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("a node that may come back: %v", steps)
	}
	d.down(2, true)
	steps := d.settle()
	want := "plan, create, add learner, set role, set role, remove, forget, promote, set role"
	if got := kinds(steps); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if leaving := steps[4]; leaving.Node != 2 || leaving.Role != storage.RoleLeaving || !strings.Contains(leaving.Reason, "down for long") {
		t.Errorf("once another has caught up: %+v", leaving)
	}
	d.wantWhole(t, 1, 3, 4)
	d.back(2)
	if got := kinds(d.settle()); got != "drop" {
		t.Errorf("node 2 is back: %s", got)
	}
	d.wantWhole(t, 1, 3, 4)
}

// TestAwayNodeIsBackInTime: after whatever step the node is back, the group ends with three voters. It keeps its own as long as no
// other one was to take its place for good.
func TestAwayNodeIsBackInTime(t *testing.T) {
	for after := range 9 {
		d := three(t)
		d.addNode("")
		d.down(2, true)
		d.take(t, after)
		d.back(2)
		d.settle()
		if after < 5 {
			d.wantWhole(t, 1, 2, 3)
			if d.w.Holds(4, 1) {
				t.Errorf("after %d steps: the replica that is not wanted any more is still there", after)
			}
		} else {
			d.wantWhole(t, 1, 3, 4)
		}
	}
}

// TestAwayWithoutAnotherNode: nothing is given up for what cannot be had.
func TestAwayWithoutAnotherNode(t *testing.T) {
	d := three(t)
	d.down(2, true)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("no other node is there: %v", steps)
	}
	g, _ := d.s.Group(1)
	if s := placement.Next(d.view(), g); !strings.Contains(s.Reason, "no other is up with room") {
		t.Errorf("it waits for %q", s.Reason)
	}
	if id := d.addNode(""); id != 4 {
		t.Fatal(id)
	}
	d.settle()
	d.wantWhole(t, 1, 3, 4)
}

// TestAwayTwice: the node that takes the place of one that is away ends as well.
func TestAwayTwice(t *testing.T) {
	d := three(t)
	d.addNode("")
	d.addNode("")
	d.down(2, true)
	for range 3 { // there is a learner
		g, _ := d.s.Group(1)
		if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
			t.Fatal(err)
		}
	}
	g, _ := d.s.Group(1)
	at := slices.IndexFunc(g.Replicas, func(r storage.Replica) bool { return r.Node > 3 })
	d.down(g.Replicas[at].Node, false)
	d.settle()
	d.wantWhole(t, 1, 3, 9-g.Replicas[at].Node)
}

// TestAway: who counts as lost, and who is left to people.
func TestAway(t *testing.T) {
	const after = 5 * time.Minute
	node := func(id int, zone string, state storage.NodeState) storage.Node {
		return storage.Node{ID: storage.NodeID(id), Zone: zone, State: state}
	}
	up, down, suspect, removed := storage.NodeUp, storage.NodeDown, storage.NodeSuspect, storage.NodeRemoved
	for what, c := range map[string]struct {
		nodes []storage.Node
		fresh int // node that is down for less than after
		after time.Duration
		want  []storage.NodeID
		held  string
	}{
		"one of four":              {nodes: []storage.Node{node(1, "", up), node(2, "", down), node(3, "", up), node(4, "", up)}, want: []storage.NodeID{2}},
		"not for long":             {nodes: []storage.Node{node(1, "", up), node(2, "", down), node(3, "", up)}, fresh: 2},
		"never":                    {nodes: []storage.Node{node(1, "", up), node(2, "", down), node(3, "", up)}, after: -1},
		"suspect":                  {nodes: []storage.Node{node(1, "", up), node(2, "", suspect), node(3, "", up)}},
		"half of all":              {nodes: []storage.Node{node(1, "", up), node(2, "", down), node(3, "", up), node(4, "", down)}, held: "2 of 4 nodes are down"},
		"half, one of them lately": {nodes: []storage.Node{node(1, "", up), node(2, "", down), node(3, "", up), node(4, "", down)}, fresh: 4, held: "2 of 4 nodes are down"},
		"removed nodes are none":   {nodes: []storage.Node{node(1, "", up), node(2, "", down), node(3, "", removed), node(4, "", removed), node(5, "", up)}, want: []storage.NodeID{2}},
		"a zone each":              {nodes: []storage.Node{node(1, "a", up), node(2, "b", down), node(3, "c", up)}, want: []storage.NodeID{2}},
		"a whole zone": {nodes: []storage.Node{node(1, "a", up), node(2, "b", down), node(3, "c", up), node(4, "b", down), node(5, "a", up)},
			held: `all 2 nodes of zone "b" are down`},
		"a whole zone, one of it lately": {nodes: []storage.Node{node(1, "a", up), node(2, "b", down), node(3, "c", up), node(4, "b", down), node(5, "a", up)},
			fresh: 4, held: `all 2 nodes of zone "b" are down`},
		"one of a zone": {nodes: []storage.Node{node(1, "a", up), node(2, "b", down), node(3, "c", up), node(4, "b", up), node(5, "a", up)},
			want: []storage.NodeID{2}},
	} {
		if c.after == 0 {
			c.after = after
		}
		away, held := placement.Away(c.nodes, func(n storage.Node) time.Duration {
			if int(n.ID) == c.fresh {
				return after
			}
			return after + 1
		}, c.after)
		var got []storage.NodeID
		for _, n := range c.nodes {
			if away[n.ID] {
				got = append(got, n.ID)
			}
		}
		if !slices.Equal(got, c.want) || held != c.held || len(away) != len(got) {
			t.Errorf("%s: away are %v, want %v; held: %q, want %q", what, got, c.want, held, c.held)
		}
	}
}

// take carries out so many steps of group 1.
func (d *driver) take(t *testing.T, n int) {
	t.Helper()
	for range n {
		g, _ := d.s.Group(1)
		if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRepairOutlivesTheLeaderOfTheCatalog: a new one does not know yet how long the node has been down. What was copied is not thrown away
// meanwhile, and is used once it is known again. The same goes for a view that leaves the node to people all of a sudden.
func TestRepairOutlivesTheLeaderOfTheCatalog(t *testing.T) {
	for after := 1; after < 9; after++ {
		d := three(t)
		d.addNode("")
		d.down(2, true)
		d.take(t, after)
		d.away = nil
		if got := kinds(d.settle()); strings.Contains(got, "drop") {
			t.Errorf("after %d steps: %s", after, got)
		}
		before := d.w.Holds(4, 1)
		d.down(2, true)
		if got := kinds(d.settle()); before && strings.Contains(got, "create") {
			t.Errorf("after %d steps: copied once more: %s", after, got)
		}
		d.wantWhole(t, 1, 3, 4)
	}
}

// TestBackIsNotEnough: a node that is back takes the place of its successor only when it has caught up, and its disk works.
func TestBackIsNotEnough(t *testing.T) {
	d := three(t)
	d.addNode("")
	d.down(2, true)
	d.w.Write(1, 1000, 0)
	d.take(t, 4) // there is a learner that has caught up
	d.w.SetSlow(2, true)
	d.back(2)
	d.w.Write(1, 1000, 0)
	if steps := d.settle(); len(steps) > 0 {
		t.Errorf("it is back, and far behind: %v", steps)
	}
	d.w.SetSlow(2, false)
	d.w.Write(1, 1, 0)
	d.settle()
	d.wantWhole(t, 1, 2, 3)

	d = three(t)
	d.addNode("")
	d.down(2, true)
	d.take(t, 4)
	d.w.FailDisk(2)
	d.back(2)
	if got := kinds(d.settle()); strings.Contains(got, "create") || strings.Contains(got, "plan") {
		t.Errorf("it is back with a failed disk: %s", got)
	}
	d.wantWhole(t, 1, 3, 4)
}

// TestNewcomerThatFails: whenever the node ends that takes the place of the one that is away, the group has a leader.
func TestNewcomerThatFails(t *testing.T) {
	for after := range 10 {
		d := three(t)
		d.addNode("")
		d.down(2, true)
		d.take(t, after)
		d.w.SetUp(4, false)
		if _, leader := d.w.Voters(1); after < 8 && leader == 0 {
			t.Errorf("after %d steps nobody leads", after)
		}
		g, _ := d.s.Group(1)
		if s := placement.Next(d.view(), g); s.Kind == placement.StepRemove && s.Node == 2 {
			t.Errorf("after %d steps: the voter goes, and nobody is there to take its place", after)
		}
	}
}

// TestAwayKeepsZones: the zone of a node that is away is free again.
func TestAwayKeepsZones(t *testing.T) {
	d := newDriver(t, 1)
	for _, z := range []string{"a", "b", "c"} {
		d.addNode(z)
	}
	d.addGroups(1)
	d.settle()
	for _, z := range []string{"b", "c", "a"} {
		d.addNode(z)
	}
	d.w.Write(1, 1000, 0)
	d.down(1, true)
	d.settle()
	d.wantWhole(t, 2, 3, 6)
}

// TestRoomForWhatComes: what is planned and pulled to a store is not free there.
func TestRoomForWhatComes(t *testing.T) {
	const gib = 1 << 30
	v := placement.View{Reports: map[storage.NodeID]placement.NodeReport{}}
	for id := storage.NodeID(1); id <= 4; id++ {
		v.Nodes = append(v.Nodes, storage.Node{ID: id, State: storage.NodeUp, Stores: []storage.Store{{ID: store(id)}}})
		v.Reports[id] = placement.NodeReport{Node: id, Stores: []placement.StoreReport{{ID: store(id), CapacityBytes: 1000 * gib, FreeBytes: 120 * gib}}}
	}
	v.Groups = []storage.Group{{ID: 1, Replicas: []storage.Replica{{Node: 1, Key: key(1, 1), Role: storage.RoleVoter}}},
		{ID: 2, Replicas: []storage.Replica{{Node: 1, Key: key(1, 1), Role: storage.RoleVoter}, {Node: 4, Key: key(4, 2), Role: storage.RolePulling}}}}
	one := v.Reports[1]
	one.Replicas = []placement.ReplicaReport{{Group: 2, Key: key(1, 1), State: placement.ReplicaLeader, LiveBytes: 100 * gib}}
	v.Reports[1] = one
	taken := append(v.Groups[0].Replicas, storage.Replica{Node: 2}, storage.Replica{Node: 3})
	if node, _, err := placement.Choose(v, taken, 100*gib); err == nil {
		t.Errorf("100 GiB more go to node %v", node)
	}
	if node, _, err := placement.Choose(v, taken, 10*gib); err != nil || node != 4 {
		t.Errorf("10 GiB more: node %v, %v", node, err)
	}
}
