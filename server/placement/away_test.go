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
	want := "plan, create, add learner, set role, set role, promote, set role, remove, forget"
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
		for range after {
			g, _ := d.s.Group(1)
			if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
				t.Fatal(err)
			}
		}
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
		away, held := placement.Away(c.nodes, func(id storage.NodeID) time.Duration {
			if int(id) == c.fresh {
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
