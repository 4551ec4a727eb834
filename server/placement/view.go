package placement

import (
	"errors"
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// View is what decisions are made from: a moment of the catalog and the reports that are fresh then. Reports of nodes
// that fell silent are left out by the caller.
type View struct {
	Cluster catalog.Cluster
	Nodes   []storage.Node
	Groups  []storage.Group
	Reports map[storage.NodeID]NodeReport
	// Away are nodes that have been down for so long that their voters are replaced; see Away.
	Away map[storage.NodeID]bool
	// Uses is where the groups' volumes are used; nil if leaders need not be near.
	Uses Uses

	index *index // nil: what is asked for is looked for
}

// NewView takes what decisions need out of a state, as of now: a maintenance that is over is none.
func NewView(s *catalog.State, fresh map[storage.NodeID]NodeReport, now time.Time) View {
	nodes := s.Nodes()
	for i, n := range nodes {
		nodes[i] = n.At(now)
	}
	return View{Cluster: s.Cluster(), Nodes: nodes, Groups: s.Groups(), Reports: fresh}.Indexed()
}

func (v View) node(id storage.NodeID) (storage.Node, bool) {
	if v.index != nil {
		if at, known := v.index.nodes[id]; known {
			return v.Nodes[at], true
		}
	}
	for _, n := range v.Nodes {
		if n.ID == id {
			return n, true
		}
	}
	return storage.Node{}, false
}

// works reports whether the node is up and was heard from.
func (v View) works(id storage.NodeID) bool {
	n, ok := v.node(id)
	_, fresh := v.Reports[id]
	return ok && fresh && n.State == storage.NodeUp
}

// storeWorks reports whether the node was heard from and says that the store is in service.
func (v View) storeWorks(node storage.NodeID, store storage.StoreID) bool {
	s, ok := v.Reports[node].Store(store)
	return ok && s.Failed == ""
}

// Wanted returns how many voters a group should have: the largest odd number of usable nodes up to
// Cluster.Replicas. Nodes that are down count, since they may come back.
func (v View) Wanted() int {
	if v.index != nil && v.index.wanted > 0 {
		return v.index.wanted
	}
	usable := 0
	for _, n := range v.Nodes {
		if n.Usable() {
			usable++
		}
	}
	wanted := v.Cluster.Wanted(usable)
	if v.index != nil {
		v.index.wanted = wanted
	}
	return wanted
}

// Leader returns the report of the replica that leads the group: of those that say so, the one with the highest term.
func (v View) Leader(g storage.Group) (storage.NodeID, ReplicaReport, bool) {
	var best ReplicaReport
	var node storage.NodeID
	for _, r := range g.Replicas {
		report, ok := v.Reports[r.Node].Replica(g.ID, r.Key)
		if ok && report.State == ReplicaLeader && (node == 0 || report.Term > best.Term) {
			node, best = r.Node, report
		}
	}
	return node, best, node != 0
}

// caughtUp reports whether a member works and has acknowledged nearly all of the leader's log, the configuration
// included. Without that last condition a replica which never answered would count in a young group, whose log has
// only a few entries.
func (v View) caughtUp(g storage.Group, leader ReplicaReport, m Member) bool {
	own, ok := v.Reports[m.Node].Replica(g.ID, m.Key)
	if !ok || !v.works(m.Node) || own.OutOfService() || own.State == ReplicaPulling {
		return false
	}
	return m.AckedIndex > 0 && m.AckedIndex >= leader.ConfigIndex && (m.CaughtUp || m.AckedIndex+PromotionLag >= leader.Last)
}

// ErrNoStore says that no store may take a replica; its text in the chain says why.
var ErrNoStore = errors.New("no store for another replica")

// candidate is a store that may take a replica, with what it is ranked by.
type candidate struct {
	node     storage.NodeID
	store    storage.StoreID
	roomy    bool // it stays below what terms.full says
	newZone  bool
	load     float64 // with the replica; see loads
	shared   int     // how many replicas lie on both the node and one of the group's nodes
	used     float64 // share of the store in use
	capacity float64 // bytes, at least one
	free     int64   // bytes that may be written
}

func (c candidate) better(o candidate) bool {
	switch {
	case c.roomy != o.roomy:
		return c.roomy
	case c.newZone != o.newZone:
		return c.newZone
	case c.load != o.load:
		return c.load < o.load
	case c.shared != o.shared:
		return c.shared < o.shared
	case c.used != o.used:
		return c.used < o.used
	default:
		return c.node < o.node // stores of a node are in the catalog's order
	}
}

// Choose returns the store for the next replica of a group, given those it has and how many bytes live in it (0: not known). It must be
// on another node, and in another zone if there is one. A store that it would fill further than nearlyFull comes after all others, also if it is the only
// one in another zone: writes of the group would soon find no room there. Among those that are left Choose prefers the store that is least loaded with the replica (loads), then
// the node that shares the fewest groups with those of the group: when one is lost, many others copy a little each. A store takes part if its node is up, reports, and neither drains nor is in maintenance, and the store
// works and has room for the group, with a tenth to spare for what is written while it is pulled.
func Choose(v View, replicas []storage.Replica, liveBytes int64) (storage.NodeID, storage.StoreID, error) {
	return choose(v, replicas, liveBytes, terms{full: nearlyFull})
}

// nearlyFull is how far a new replica fills a store before others come first, as a part.
const nearlyFull = 0.9

// terms are what stores have to meet for a replica.
type terms struct {
	may   func(storage.StoreID) bool // those that may take it; nil: all
	full  float64                    // how far it fills a store before others come first, as a part
	moves bool                       // nothing is lost with it: a store that it would fill further takes part for its load alone, not for its zone
}

// moving are the terms for a replica that moves: those of what records it as leaving, and of what plans another one.
func moving(may func(storage.StoreID) bool) terms {
	return terms{may: may, full: zoneFull, moves: true}
}

// choose is Choose on the terms given.
func choose(v View, replicas []storage.Replica, liveBytes int64, on terms) (storage.NodeID, storage.StoreID, error) {
	wantBytes := max(1, liveBytes+liveBytes/10)
	taken := map[storage.NodeID]bool{}
	zones := map[string]bool{}
	for _, r := range replicas {
		taken[r.Node] = true
		if n, ok := v.node(r.Node); ok && r.Role != storage.RoleLeaving && !v.Away[r.Node] {
			zones[n.Zone] = true
		}
	}
	l := v.loads()
	var best, small candidate // small: without enough room, the largest
	for _, n := range v.Nodes {
		if !n.MayTake() || taken[n.ID] || !v.works(n.ID) {
			continue
		}
		for _, s := range n.Stores {
			if on.may != nil && !on.may(s.ID) {
				continue
			}
			c, ok := v.candidate(n, s, l.weight[s.ID]+l.of(liveBytes))
			c.roomy = c.used+float64(l.coming[s.ID]+liveBytes)/c.capacity <= on.full
			c.newZone, c.free = !zones[n.Zone] && (c.roomy || !on.moves), c.free-l.coming[s.ID]
			c.shared = l.sharedWith(n.ID, replicas)
			switch {
			case !ok:
			case c.free < wantBytes:
				if small.node == 0 || c.free > small.free {
					small = c
				}
			case best.node == 0 || c.better(best):
				best = c
			}
		}
	}
	switch {
	case best.node == 0 && small.node != 0:
		n, _ := v.node(small.node)
		return 0, storage.StoreID{}, fmt.Errorf("%w: it needs %d bytes free, and store %s of node %s has the most, %d; discard, delete volumes, make its file system larger or add a node",
			ErrNoStore, wantBytes, small.store, n.Name, max(0, small.free))
	case best.node == 0:
		return 0, storage.StoreID{}, fmt.Errorf("%w: %d nodes hold one already, and no other is up with room",
			ErrNoStore, len(taken))
	}
	return best.node, best.store, nil
}

func (v View) candidate(n storage.Node, s storage.Store, weight int64) (candidate, bool) {
	report, ok := v.Reports[n.ID].Store(s.ID)
	if !ok || report.Failed != "" {
		return candidate{}, false
	}
	capacity := float64(max(report.CapacityBytes, 1))
	return candidate{node: n.ID, store: s.ID, free: report.FreeBytes, load: float64(weight) / capacity,
		used: float64(report.UsedBytes) / capacity, capacity: capacity}, true
}
