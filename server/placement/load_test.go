package placement_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
	"github.com/storaged/storaged/server/placement/placementtest"
)

const tib = 1 << 40

// TestGroupsWanted: stores that work count, and no others.
func TestGroupsWanted(t *testing.T) {
	for nodes, want := range map[int]int{1: 8, 2: 8, 3: 8, 4: 16, 6: 16, 7: 32, 100: 512, 1000: 4096, 3000: 4096} {
		v := placement.View{Cluster: catalog.Cluster{Replicas: 3, Groups: 8}, Reports: map[storage.NodeID]placement.NodeReport{}}
		add := func(n storage.Node, stores ...placement.StoreReport) {
			n.ID = storage.NodeID(len(v.Nodes) + 1)
			for i := range stores {
				stores[i].ID = storage.StoreID{byte(i + 1), byte(n.ID >> 8), byte(n.ID)}
				n.Stores = append(n.Stores, storage.Store{ID: stores[i].ID})
			}
			v.Nodes = append(v.Nodes, n)
			v.Reports[n.ID] = placement.NodeReport{Node: n.ID, Stores: stores}
		}
		for range nodes {
			add(storage.Node{State: storage.NodeUp}, placement.StoreReport{}, placement.StoreReport{Failed: "EIO"})
		}
		for range 50 {
			add(storage.Node{State: storage.NodeRemoved}, placement.StoreReport{})
			add(storage.Node{State: storage.NodeUp, Intent: storage.IntentDrain}, placement.StoreReport{})
			add(storage.Node{State: storage.NodeDown}, placement.StoreReport{})
		}
		if got := v.GroupsWanted(); got != want {
			t.Errorf("%d nodes: %d groups, want %d", nodes, got, want)
		}
		if v.Cluster.Groups = 64; v.GroupsWanted() != max(want, 64) {
			t.Errorf("%d nodes, made with 64 groups: %d", nodes, v.GroupsWanted())
		}
	}
}

// clusterOf has a node in each of the zones named.
func clusterOf(t interface{ Fatal(...any) }, zones ...string) *placementtest.Cluster {
	c := placementtest.NewCluster(3)
	for _, z := range zones {
		c.AddNode(z, tib)
	}
	settled(t, c)
	return c
}

func settled(t interface{ Fatal(...any) }, c *placementtest.Cluster) {
	if err := c.Settle(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func fill(c *placementtest.Cluster, bytes func(storage.GroupID) int64) {
	for _, g := range c.Groups {
		c.Live[g.ID] = bytes(g.ID)
	}
}

// count returns how many replicas each node holds.
func count(c *placementtest.Cluster) map[storage.NodeID]int {
	n := map[storage.NodeID]int{}
	for _, g := range c.Groups {
		for _, r := range g.Replicas {
			n[r.Node]++
		}
	}
	return n
}

// TestNewNodeGetsItsShare: with the fourth node there are groups for it, and what three held is spread over four. Moved is what it gets, and
// nothing twice.
func TestNewNodeGetsItsShare(t *testing.T) {
	c := clusterOf(t, "", "", "")
	fill(c, func(storage.GroupID) int64 { return 100 << 30 })
	if settled(t, c); c.Moves != 0 {
		t.Errorf("%d replicas moved among three nodes", c.Moves)
	}
	c.AddNode("", tib)
	settled(t, c)
	held := c.StoredBytes()
	for id := storage.NodeID(1); id <= 4; id++ {
		if b := held[placementtest.StoreOf(id)] >> 30; b < 500 || b > 700 {
			t.Errorf("node %v holds %d GiB of 2400 on four nodes", id, b)
		}
	}
	if got := c.MovedBytes; got != held[placementtest.StoreOf(4)] {
		t.Errorf("%d GiB moved, and the fourth holds %d", got>>30, held[placementtest.StoreOf(4)]>>30)
	}
	if n := count(c); len(c.Groups) != 16 || n[4] < 10 || n[4] > 15 {
		t.Errorf("%d groups; replicas: %v", len(c.Groups), n)
	}
}

// TestMovesKeepZones: a second node in a zone takes over from the first one there, and from nobody else.
func TestMovesKeepZones(t *testing.T) {
	c := clusterOf(t, "a", "b", "c")
	fill(c, func(storage.GroupID) int64 { return 10 << 30 })
	c.AddNode("a", tib)
	settled(t, c)
	n, held := count(c), c.StoredBytes()
	if n[1]+n[4] != len(c.Groups) || n[2] != len(c.Groups) || n[3] != len(c.Groups) {
		t.Errorf("replicas: %v of %d groups", n, len(c.Groups))
	}
	if a, b := held[placementtest.StoreOf(1)]>>30, held[placementtest.StoreOf(4)]>>30; a+b != 80 || a < 30 || b < 30 {
		t.Errorf("of 80 GiB in the zone one node holds %d, the other %d", a, b)
	}
}

// TestZonesAreTakenApart: replicas that share a zone, because there was no other one, go to one that is new.
func TestZonesAreTakenApart(t *testing.T) {
	c := clusterOf(t, "a", "a", "b")
	fill(c, func(storage.GroupID) int64 { return 10 << 30 })
	c.AddNode("c", tib)
	settled(t, c)
	for _, g := range c.Groups {
		zones := map[string]bool{}
		for _, r := range g.Replicas {
			zones[c.Nodes[r.Node-1].Zone] = true
		}
		if len(zones) != 3 {
			t.Errorf("group %v lies in zones %v", g.ID, slices.Collect(maps.Keys(zones)))
		}
	}
}

// TestMovesAreFew: at most one group, and one more for 16 stores, is moved at a time, and a store takes part in one move.
func TestMovesAreFew(t *testing.T) {
	var zones []string
	for range 40 {
		zones = append(zones, "")
	}
	c := clusterOf(t, zones...)
	fill(c, func(g storage.GroupID) int64 { return int64(g%7) * 10 << 30 })
	for range 40 {
		c.AddNode("", tib)
	}
	v := c.View()
	moves := placement.ReplicaMoves(v)
	from := map[storage.StoreID]bool{}
	for _, s := range moves {
		from[s.Store] = true
	}
	if len(moves) != 6 || len(from) != 6 {
		t.Fatalf("%d moves at once, from %d stores; want 6 from as many", len(moves), len(from))
	}
	g := &c.Groups[moves[0].Group-1]
	g.Replicas = slices.Clone(g.Replicas)
	at, _ := g.OnNode(moves[0].Node)
	g.Replicas[slices.Index(g.Replicas, at)].Role = storage.RoleLeaving
	moves = placement.ReplicaMoves(c.View())
	if len(moves) != 5 {
		t.Errorf("with one on its way there are %d more", len(moves))
	}
	for _, s := range moves {
		if s.Group == g.ID || s.Store == at.Key.Store {
			t.Errorf("of what moves already: %+v", s)
		}
	}
}

// TestNothingMovesWhileItIsRepaired: what is to be repaired goes first, and a group that is not whole is not moved.
func TestNothingMovesWhileItIsRepaired(t *testing.T) {
	c := clusterOf(t, "", "", "")
	fill(c, func(storage.GroupID) int64 { return 100 << 30 })
	c.AddNode("", tib)
	v := c.View()
	if moves := placement.ReplicaMoves(v); len(moves) != 1 {
		t.Fatalf("%d moves", len(moves))
	}
	v.Nodes = slices.Clone(v.Nodes)
	v.Nodes[1].State = storage.NodeDown
	delete(v.Reports, 2)
	if moves := placement.ReplicaMoves(v.Indexed()); len(moves) != 0 {
		t.Errorf("with node 2 down: %+v", moves)
	}
}

// TestMovesEnd: from whatever state, replicas stop moving. No group lies in fewer zones than before, on fewer nodes, or has fewer replicas, stores are
// not loaded more unevenly than before, and nothing is over its capacity that was not.
func TestMovesEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := placementtest.NewCluster(3)
		zones := rapid.IntRange(1, 4).Draw(t, "zones")
		add := func(n int) {
			for range n {
				c.AddNode(fmt.Sprint(rapid.IntRange(1, zones).Draw(t, "zone")), int64(rapid.IntRange(1, 4).Draw(t, "TiB"))*tib)
			}
		}
		add(rapid.IntRange(3, 9).Draw(t, "nodes"))
		settled(t, c)
		fill(c, func(storage.GroupID) int64 { return int64(rapid.IntRange(0, 100).Draw(t, "GiB")) << 30 })
		add(rapid.IntRange(0, 4).Draw(t, "more nodes"))
		spread := func(g storage.Group) int {
			in := map[string]bool{}
			for _, r := range g.Replicas {
				in[c.Nodes[r.Node-1].Zone] = true
			}
			return len(in)
		}
		var before []int
		for _, g := range c.Groups {
			before = append(before, spread(g))
		}
		settled(t, c)
		for i, g := range c.Groups {
			nodes := map[storage.NodeID]bool{}
			for _, r := range g.Replicas {
				nodes[r.Node] = true
			}
			if len(nodes) != 3 || len(g.Replicas) != 3 || i < len(before) && spread(g) < before[i] {
				t.Fatalf("group %v: %v, %d zones", g.ID, g.Replicas, spread(g))
			}
		}
		for s, b := range c.StoredBytes() {
			if b > 4*tib {
				t.Fatalf("store %v holds %d GiB", s, b>>30)
			}
		}
	})
}

// TestMoveWhileAnotherIsLost: a replica moves, and before the other one votes another voter's node ends, for a moment or for good. The one that was to go stays as long
// as it makes one of three. At last there are three that work.
//
// Guards I1: well in leave. Without it the move leaves two copies where there were three good ones.
func TestMoveWhileAnotherIsLost(t *testing.T) {
	for after := range 7 { // the seventh step takes it out
		d := three(t)
		d.addNode("")
		g, _ := d.s.Group(1)
		d.must(catalog.SetReplica{Group: 1, Key: g.Replicas[1].Key, Role: storage.RoleLeaving})
		d.take(t, after)
		lost := g.Replicas[2].Node
		d.down(lost, false)
		d.settle()
		voters, _ := d.w.Voters(1)
		for _, id := range []storage.NodeID{1, 2, 4} {
			if !slices.Contains(voters, id) {
				t.Errorf("after %d steps: voters %v; node %v has a good copy", after, voters, id)
			}
		}
		d.back(lost)
		d.settle()
		d.wantWhole(t, 1, 3, 4)
	}
}

// TestMoveWhoseEndIsLost: the node to which a replica moves is lost on the way, or just after it votes there. The group has three voters that work, and nothing is
// moved for that but what is there no more.
//
// Guards: stay; in giveUp, that a voter whose node is away goes once there are enough.
func TestMoveWhoseEndIsLost(t *testing.T) {
	for after := range 9 {
		d := three(t)
		d.addNode("")
		g, _ := d.s.Group(1)
		d.must(catalog.SetReplica{Group: 1, Key: g.Replicas[1].Key, Role: storage.RoleLeaving})
		d.take(t, after)
		d.down(4, true)
		steps := d.settle()
		d.wantWhole(t, 1, 2, 3)
		if created := slices.ContainsFunc(steps, func(s placement.Step) bool { return s.Kind == placement.StepCreate }); created && after < 7 { // the seventh takes it out
			t.Error("the copy that was there is made anew")
		}
		if t.Failed() {
			t.Fatalf("after %d steps: %v", after, steps)
		}
	}
}

// TestMoveWhoseEndIsLostAfterwards: another node could take a replica, but nothing has to be copied while the one that was to leave is there.
func TestMoveWhoseEndIsLostAfterwards(t *testing.T) {
	d := three(t)
	d.addNode("")
	g, _ := d.s.Group(1)
	d.must(catalog.SetReplica{Group: 1, Key: g.Replicas[1].Key, Role: storage.RoleLeaving})
	d.take(t, 6) // node 4 votes
	d.addNode("")
	d.down(4, true)
	if got, want := kinds(d.settle()), "set role, set role, remove, forget"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	d.wantWhole(t, 1, 2, 3)
}

// TestStayedAndTheOtherIsBack: a replica that was to leave is a voter again, and the node whose loss was the cause comes back at any moment after that. There are three
// voters in the end, and the leader goes on.
//
// Guards: surplus in lost.
func TestStayedAndTheOtherIsBack(t *testing.T) {
	for after := range 6 {
		d := three(t)
		d.addNode("")
		g, _ := d.s.Group(1)
		d.must(catalog.SetReplica{Group: 1, Key: g.Replicas[1].Key, Role: storage.RoleLeaving})
		d.take(t, 6) // node 4 votes
		d.down(4, true)
		d.take(t, after)
		d.back(4)
		d.settle()
		if after == 0 { // nothing was decided yet
			d.wantWhole(t, 1, 3, 4)
		} else {
			d.wantWhole(t, 1, 2, 3)
		}
		if t.Failed() {
			t.Fatalf("back after %d steps", after)
		}
	}
}

// TestOlderClusterLetsLeave: nodes before version 9 refuse to let it stay, so nobody asks.
func TestOlderClusterLetsLeave(t *testing.T) {
	d := three(t)
	g, _ := d.s.Group(1)
	d.must(catalog.SetReplica{Group: 1, Key: g.Replicas[1].Key, Role: storage.RoleLeaving})
	v := d.view()
	g, _ = d.s.Group(1)
	if s := placement.Next(v, g); s.Kind != placement.StepSetRole || !s.Stays {
		t.Errorf("nothing can take its place: %v", s)
	}
	v.Cluster.Version = catalog.StayVersion - 1
	if s := placement.Next(v, g); s.Kind != placement.StepNone {
		t.Errorf("before version 9: %v", s)
	}
}

// TestMoveThatCannotEnd: in a cluster of before version 9 the node that was to take a replica is gone, and no other can. The replica goes on voting; and another
// voter whose log is damaged is made anew on its own node all the same.
//
// Guards: blocked in giveUp.
func TestMoveThatCannotEnd(t *testing.T) {
	d := three(t)
	d.version = catalog.StayVersion - 1
	g, _ := d.s.Group(1)
	d.must(catalog.SetReplica{Group: 1, Key: g.Replicas[1].Key, Role: storage.RoleLeaving})
	_, leader := d.w.Voters(1)
	if leader == 3 {
		t.Fatal("node 3 leads")
	}
	d.w.Damage(3, 1)
	d.settle()
	if voters, _ := d.w.Voters(1); !slices.Equal(slices.Sorted(slices.Values(voters)), []storage.NodeID{1, 2, 3}) || d.w.Damaged(3, 1) {
		t.Errorf("voters %v, node 3 is damaged: %v", voters, d.w.Damaged(3, 1))
	}
	if v := d.w.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// TestZoneThatIsFull: replicas that share a zone stay where they are rather than fill a small node of another zone.
func TestZoneThatIsFull(t *testing.T) {
	c := clusterOf(t, "a", "a", "b")
	fill(c, func(storage.GroupID) int64 { return 10 << 30 })
	small := c.AddNode("c", 60<<30)
	settled(t, c)
	if held := c.StoredBytes()[placementtest.StoreOf(small)]; held != 40<<30 {
		t.Errorf("the small node holds %d GiB of 60, want 40", held>>30)
	}
}

// TestNothingMovesBeforeAllIsKnown: while the leader of a group is not heard, what lives in it is not known, and nothing moves.
func TestNothingMovesBeforeAllIsKnown(t *testing.T) {
	c := clusterOf(t, "", "", "")
	fill(c, func(storage.GroupID) int64 { return 100 << 30 })
	c.AddNode("", tib)
	v := c.View()
	if moves := placement.ReplicaMoves(v); len(moves) != 1 {
		t.Fatalf("%d moves", len(moves))
	}
	for _, r := range v.Reports { // the slices are this view's own
		for i := range r.Replicas {
			if r.Replicas[i].Group == 1 {
				r.Replicas[i].State = placement.ReplicaFollower
			}
		}
	}
	if moves := placement.ReplicaMoves(v.Indexed()); len(moves) != 0 {
		t.Errorf("with a group that nobody leads: %+v", moves)
	}
}

// TestSmallZoneHoldsUpNothing: replicas that share a zone, because the only node of another one is too small, move to a new node for their load all the same.
//
// Guards: candidate.roomy. Without it moves and new replicas were meant for the full node, and the new one got nothing.
func TestSmallZoneHoldsUpNothing(t *testing.T) {
	for _, gib := range []int64{12, 24, 60} {
		c := clusterOf(t, "a", "a", "b")
		fill(c, func(storage.GroupID) int64 { return 10 << 30 })
		small := c.AddNode("c", gib<<30)
		settled(t, c)
		large := c.AddNode("a", tib)
		settled(t, c)
		held := c.StoredBytes()
		if s := held[placementtest.StoreOf(small)]; s > gib<<30*8/10 {
			t.Errorf("the small node holds %d GiB of %d", s>>30, gib)
		}
		var a int64
		for _, id := range []storage.NodeID{1, 2, large} {
			a += held[placementtest.StoreOf(id)]
		}
		if l := held[placementtest.StoreOf(large)]; l < a/4 {
			t.Errorf("with a node of %d GiB in a zone of its own, the new node holds %d of the %d GiB in its zone", gib, l>>30, a>>30)
		}
	}
}

// TestFullStoresStillLevelOut: where every store is above the bound for zones, a replica moves for its load, and the full zone is not in its way.
func TestFullStoresStillLevelOut(t *testing.T) {
	c := clusterOf(t, "a", "a", "b")
	fill(c, func(storage.GroupID) int64 { return 10 << 30 })
	small, large := c.AddNode("c", 100<<30), c.AddNode("a", tib)
	v := c.View()
	for _, n := range []storage.NodeID{small, large} { // by what is no replica's
		s := &v.Reports[n].Stores[0]
		s.UsedBytes = s.CapacityBytes / 100 * 85
		s.FreeBytes = s.CapacityBytes - s.UsedBytes
	}
	if moves := placement.ReplicaMoves(v); len(moves) != 1 {
		t.Fatalf("%d moves, want one to node %v", len(moves), large)
	} else if want := "stores fill evenly with it on node n" + large.String(); moves[0].Reason != want {
		t.Errorf("%q, want %q", moves[0].Reason, want)
	}
}

// TestNewReplicasLeaveRoom: what was on a lost node goes to another zone while nodes there have room, and then to one with room; if none has, zones count again.
func TestNewReplicasLeaveRoom(t *testing.T) {
	c := placementtest.NewCluster(3)
	for _, z := range []string{"a", "a", "b", "b"} {
		c.AddNode(z, tib)
	}
	c.AddNode("c", 100<<30)
	v := c.View()
	at := func(n storage.NodeID) storage.Replica {
		return storage.Replica{Node: n, Key: storage.ReplicaKey{Store: placementtest.StoreOf(n)}, Role: storage.RoleVoter}
	}
	use := func(n storage.NodeID, part int64) {
		s := &v.Reports[n].Stores[0]
		s.UsedBytes = s.CapacityBytes / 100 * part
		s.FreeBytes = s.CapacityBytes - s.UsedBytes
	}
	for _, x := range []struct {
		small, others int64 // percent that is used
		want          []storage.NodeID
	}{{78, 10, []storage.NodeID{5}}, {85, 10, []storage.NodeID{2, 4}}, {85, 95, []storage.NodeID{5}}} {
		use(5, x.small)
		use(2, x.others)
		use(4, x.others)
		node, _, err := placement.Choose(v, []storage.Replica{at(1), at(3)}, 10<<30)
		if err != nil || !slices.Contains(x.want, node) {
			t.Errorf("%d %% used in the new zone, %d %% elsewhere: node %v (%v), want one of %v", x.small, x.others, node, err, x.want)
		}
	}
}
