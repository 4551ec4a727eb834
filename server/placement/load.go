package placement

import (
	"cmp"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// The load of a store is what its replicas weigh for its capacity. A replica weighs what lives in its group and, for what is still to be
// written to it, a part of what lives in a group on average. So stores of an empty cluster hold as many replicas for their capacity, and those
// of a full one as many bytes.

const (
	// leastWeight is what an empty replica weighs at least: the numbers of replicas count until groups hold some gigabytes.
	leastWeight = 1 << 30
	// basePart is the part of the average: with all of it, `make bench-placement` finds stores twice as uneven.
	basePart = 4
)

// replicasPerStore is how many replicas a store gets at least, so that whole replicas can be spread evenly.
const replicasPerStore = 8

// GroupsWanted returns how many groups the cluster should have: the smallest power of two with at least replicasPerStore replicas for each
// store that works, not fewer than at the start, at most catalog.MaxGroups. A group stays for good: none is added for a node that is down. Volumes that are there keep their groups, new ones use the new ones, too.
func (v View) GroupsWanted() int {
	stores := 0
	for _, n := range v.Nodes {
		if !n.Usable() || !n.MayTake() || !v.works(n.ID) {
			continue
		}
		for _, s := range n.Stores {
			if v.storeWorks(n.ID, s.ID) {
				stores++
			}
		}
	}
	n := 1
	for n*max(v.Cluster.Replicas, 1) < stores*replicasPerStore {
		n *= 2
	}
	return min(max(n, v.Cluster.Groups), catalog.MaxGroups)
}

// index finds what a View holds without going through it for each group: at 1,000 nodes one look at the cluster would take seconds. What it
// counts is of the moment when it was asked first.
type index struct {
	nodes   map[storage.NodeID]int // places in View.Nodes
	loads   *loads
	unnamed map[storage.GroupID][]storage.Replica
	wanted  int // View.Wanted; 0: not asked for yet
}

// Indexed returns the view with an index, which makes decisions about large clusters faster. Its nodes and groups must not change afterwards.
func (v View) Indexed() View {
	v.index = &index{nodes: make(map[storage.NodeID]int, len(v.Nodes))}
	for i, n := range v.Nodes {
		v.index.nodes[n.ID] = i
	}
	return v
}

// unnamedOf returns what nodes that work say they hold of a group and the catalog does not name, in the order of the nodes. Replicas of incarnations
// that this view of the catalog does not know yet are left out, and those from before a recovery (catalog.SameEra): one of them may be all that
// there is of what the group held.
func (v View) unnamedOf(g storage.Group) []storage.Replica {
	if v.index == nil {
		return v.findUnnamed([]storage.Group{g})[g.ID]
	}
	if v.index.unnamed == nil {
		v.index.unnamed = v.findUnnamed(v.Groups)
	}
	return v.index.unnamed[g.ID]
}

func (v View) findUnnamed(groups []storage.Group) map[storage.GroupID][]storage.Replica {
	byID := make(map[storage.GroupID]*storage.Group, len(groups))
	for i := range groups {
		byID[groups[i].ID] = &groups[i]
	}
	unnamed := map[storage.GroupID][]storage.Replica{}
	for _, n := range v.Nodes { // in the order of their ids, so that the same view gives the same step
		if !v.works(n.ID) {
			continue
		}
		for _, own := range v.Reports[n.ID].Replicas {
			g := byID[own.Group]
			if g == nil || own.Key.Incarnation > g.LastIncarnation || !catalog.SameEra(own.Key.Incarnation, g.LastIncarnation) {
				continue
			}
			if _, known := g.Replica(own.Key); !known {
				unnamed[g.ID] = append(unnamed[g.ID], storage.Replica{Node: n.ID, Key: own.Key})
			}
		}
	}
	return unnamed
}

// loads is what stores hold, and what comes to them.
type loads struct {
	base    int64                     // what an empty replica weighs
	weight  map[storage.StoreID]int64 // of the replicas that stay or come
	coming  map[storage.StoreID]int64 // live bytes of replicas that do not vote yet. What of it is there already counts twice.
	moving  map[storage.StoreID]bool  // a replica comes to the store or leaves it
	groups  map[storage.StoreID][]int // places in View.Groups of those with a voter there
	live    map[storage.GroupID]int64 // bytes; 0: not known
	shared  map[[2]storage.NodeID]int // groups that both nodes hold, the lower id first
	unquiet int                       // groups with a replica that comes or leaves
}

func (v View) loads() *loads {
	if v.index != nil && v.index.loads != nil {
		return v.index.loads
	}
	l := &loads{weight: map[storage.StoreID]int64{}, coming: map[storage.StoreID]int64{}, moving: map[storage.StoreID]bool{},
		groups: map[storage.StoreID][]int{}, live: map[storage.GroupID]int64{}, shared: map[[2]storage.NodeID]int{}}
	var sum, known int64
	for _, g := range v.Groups {
		if _, leader, led := v.Leader(g); led {
			l.live[g.ID] = leader.LiveBytes
			sum, known = sum+leader.LiveBytes, known+1
		}
	}
	l.base = max(leastWeight, sum/max(known, 1)/basePart)
	for i, g := range v.Groups {
		unquiet := false
		for at, r := range g.Replicas {
			for _, o := range g.Replicas[:at] {
				l.shared[pair(r.Node, o.Node)]++
			}
			if r.Role != storage.RoleLeaving {
				l.weight[r.Key.Store] += l.of(l.live[g.ID])
			}
			switch r.Role {
			case storage.RoleVoter:
				l.groups[r.Key.Store] = append(l.groups[r.Key.Store], i)
				continue
			case storage.RolePulling, storage.RoleLearner:
				l.coming[r.Key.Store] += l.live[g.ID]
			}
			l.moving[r.Key.Store], unquiet = true, true
		}
		if unquiet {
			l.unquiet++
		}
	}
	if v.index != nil {
		v.index.loads = l
	}
	return l
}

func pair(a, b storage.NodeID) [2]storage.NodeID { return [2]storage.NodeID{min(a, b), max(a, b)} }

func (l *loads) sharedWith(n storage.NodeID, replicas []storage.Replica) (sum int) {
	for _, r := range replicas {
		sum += l.shared[pair(n, r.Node)]
	}
	return sum
}

// of returns what a replica weighs of a group in which so many bytes live.
func (l *loads) of(live int64) int64 { return l.base + live }

// A move is worth it if the store that takes the replica is afterwards less loaded than the other one was, by this part of the average load:
// what lives in groups changes all the time, and nothing is to move to and fro.
const worthPart = 0.05

// A store gets no replica for the sake of zones alone that would fill it further than this part: the group's writes would be refused for lack of room
// there, although others have it. It keeps no replica from moving elsewhere for its load.
const zoneFull = 0.8

// movesPart bounds how many groups are moved at once: one, and one more for so many stores.
const movesPart = 16

// ReplicaMoves returns replicas that should go elsewhere, so that groups lie in as many zones as they can and stores fill evenly. Each step
// records one as leaving; Next then plans another one, on the store that Choose takes, and the old one votes until that one does. A store
// takes part in one move at a time, and not while a replica comes to it or leaves it for another reason.
func ReplicaMoves(v View) (moves []Step) {
	b := balancer{View: v, loads: v.loads(), moved: map[storage.StoreID]bool{}}
	if slices.ContainsFunc(v.Groups, func(g storage.Group) bool { _, heard := b.live[g.ID]; return g.State == storage.GroupReady && !heard }) {
		return nil // what lives in a group is not known: it would count as empty
	}
	b.list()
	room := 1 + len(b.stores)/movesPart - b.unquiet
	for _, s := range b.stores {
		if !b.findLeast() {
			return moves
		}
		for _, at := range b.groups[s.store] {
			if len(moves) >= room {
				return moves
			}
			if step, ok := b.move(s, v.Groups[at]); ok {
				moves = append(moves, step)
				break
			}
		}
	}
	return moves
}

type balancer struct {
	View
	*loads
	stores []loaded // those that work, the most loaded first
	mean   float64
	least  float64         // load of the least loaded store that may take a replica now
	large  int64           // bytes of the largest
	zones  map[string]bool // of nodes that may take replicas
	moved  map[storage.StoreID]bool
}

type loaded struct {
	node  storage.NodeID
	store storage.StoreID
	load  float64
}

// list finds the stores, and sorts the groups of each, the heaviest first: fewer moves bring the same.
func (b *balancer) list() {
	b.zones = map[string]bool{}
	var weight, capacity float64
	for _, n := range b.Nodes {
		if !n.MayTake() || !b.works(n.ID) {
			continue
		}
		b.zones[n.Zone] = true
		for _, s := range n.Stores {
			report, ok := b.Reports[n.ID].Store(s.ID)
			if !ok || report.Failed != "" {
				continue
			}
			size := float64(max(report.CapacityBytes, 1))
			b.stores = append(b.stores, loaded{n.ID, s.ID, float64(b.weight[s.ID]) / size})
			weight, capacity, b.large = weight+float64(b.weight[s.ID]), capacity+size, max(b.large, report.CapacityBytes)
			slices.SortStableFunc(b.groups[s.ID], func(x, y int) int { return cmp.Compare(b.live[b.Groups[y].ID], b.live[b.Groups[x].ID]) })
		}
	}
	b.mean = weight / max(capacity, 1)
	slices.SortStableFunc(b.stores, func(x, y loaded) int { return cmp.Compare(y.load, x.load) })
}

// findLeast finds the least loaded store that may take a replica now; false: none may.
func (b *balancer) findLeast() bool {
	for _, s := range slices.Backward(b.stores) {
		if b.may(s.store) {
			b.least = s.load
			return true
		}
	}
	return false
}

func (b *balancer) may(s storage.StoreID) bool { return !b.moving[s] && !b.moved[s] }

// move returns the step that moves a group's replica away from a store, if that is better and nothing else is to be done for the group.
func (b *balancer) move(from loaded, g storage.Group) (Step, bool) {
	shares := b.spread(g, 0) < min(len(g.Replicas), len(b.zones)) && b.spread(g, from.node) == b.spread(g, 0)
	if !b.may(from.store) || !shares && !b.worth(from, b.least, g, b.large) {
		return Step{}, false
	}
	others := slices.Clone(g.Replicas)
	at := slices.IndexFunc(others, func(r storage.Replica) bool { return r.Key.Store == from.store })
	others[at].Role = storage.RoleLeaving
	node, store, err := choose(b.View, others, b.live[g.ID], moving(b.may))
	if err != nil {
		return Step{}, false
	}
	to, _ := b.node(node)
	report, _ := b.Reports[node].Store(store)
	others[at] = storage.Replica{Node: to.ID, Key: storage.ReplicaKey{Store: store}, Role: storage.RoleVoter}
	after := storage.Group{ID: g.ID, Replicas: others}
	load := float64(b.weight[store]) / float64(max(report.CapacityBytes, 1))
	before := b.spread(g, 0)
	switch now := b.spread(after, 0); {
	case now < before, (now == before || float64(report.UsedBytes+b.live[g.ID]) > zoneFull*float64(report.CapacityBytes)) && !b.worth(from, load, g, report.CapacityBytes):
		return Step{}, false
	}
	p := planner{v: b.View, g: g}
	p.leaderNode, p.leader, _ = b.Leader(g)
	if Next(b.View, g).Kind != StepNone || p.sound() < len(g.Replicas) || p.sound() < p.wanted() {
		return Step{}, false
	}
	b.moved[from.store], b.moved[store] = true, true
	s := p.step(StepSetRole, g.Replicas[at])
	s.Role, s.Reason = storage.RoleLeaving, "stores fill evenly with it on node "+to.Name
	if b.spread(after, 0) > before {
		s.Reason = "its group lies in more zones with it on node " + to.Name
	}
	return s, true
}

// worth reports whether a store of some capacity, so loaded, takes a replica of the group with profit.
func (b *balancer) worth(from loaded, load float64, g storage.Group, capacity int64) bool {
	return load+float64(b.of(b.live[g.ID]))/float64(max(capacity, 1))+worthPart*b.mean < from.load
}

// spread returns in how many zones a group's replicas lie, without that of one node.
func (b *balancer) spread(g storage.Group, without storage.NodeID) int {
	zones := map[string]bool{}
	for _, r := range g.Replicas {
		if n, known := b.node(r.Node); known && r.Node != without {
			zones[n.Zone] = true
		}
	}
	return len(zones)
}
