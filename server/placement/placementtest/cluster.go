package placementtest

import (
	"context"
	"errors"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// Cluster is nodes and groups of which all works and every order is done at once. It shows where package placement puts replicas, for clusters
// of any size. It is not for concurrent use.
type Cluster struct {
	Nodes  []storage.Node
	Groups []storage.Group
	// Live is how many bytes live in each group.
	Live map[storage.GroupID]int64
	// MovedBytes is what was copied to new replicas of groups that had one before.
	MovedBytes int64
	// Moves is how many replicas that was.
	Moves int

	replicas int
	capacity map[storage.StoreID]int64
	leaders  map[storage.GroupID]storage.NodeID
	gone     map[storage.NodeID]bool // for good
}

// NewCluster returns a cluster without nodes that keeps so many replicas of a group.
func NewCluster(replicas int) *Cluster {
	return &Cluster{Live: map[storage.GroupID]int64{}, replicas: replicas, capacity: map[storage.StoreID]int64{},
		leaders: map[storage.GroupID]storage.NodeID{}, gone: map[storage.NodeID]bool{}}
}

// AddNode adds a node with one store of so many bytes.
func (c *Cluster) AddNode(zone string, capacity int64) storage.NodeID {
	id := storage.NodeID(len(c.Nodes) + 1)
	s := StoreOf(id)
	c.Nodes = append(c.Nodes, storage.Node{ID: id, Name: "n" + id.String(), Zone: zone, State: storage.NodeUp, Stores: []storage.Store{{ID: s, CapacityBytes: capacity}}})
	c.capacity[s] = capacity
	return id
}

// StoreOf returns the id of a node's store.
func StoreOf(id storage.NodeID) storage.StoreID {
	return storage.StoreID{0: 0xd1, 12: byte(id >> 24), 13: byte(id >> 16), 14: byte(id >> 8), 15: byte(id)}
}

// Lose has a node end for good, and be known for it.
func (c *Cluster) Lose(id storage.NodeID) {
	c.Nodes[id-1].State = storage.NodeRemoved
	c.gone[id] = true
	for _, g := range c.Groups {
		if c.leaders[g.ID] != id {
			continue
		}
		for _, r := range g.Replicas {
			if r.Role == storage.RoleVoter && !c.gone[r.Node] {
				c.leaders[g.ID] = r.Node
				break
			}
		}
	}
}

// StoredBytes returns what each store holds.
func (c *Cluster) StoredBytes() map[storage.StoreID]int64 {
	held := map[storage.StoreID]int64{}
	for _, g := range c.Groups {
		for _, r := range g.Replicas {
			held[r.Key.Store] += c.Live[g.ID]
		}
	}
	return held
}

// View returns how the catalog's leader sees the cluster.
func (c *Cluster) View() placement.View {
	held := c.StoredBytes()
	v := placement.View{Cluster: catalog.Cluster{Replicas: c.replicas, Groups: catalog.DefaultGroups}, Nodes: c.Nodes, Groups: c.Groups,
		Reports: make(map[storage.NodeID]placement.NodeReport, len(c.Nodes))}
	for _, n := range c.Nodes {
		if !c.gone[n.ID] {
			s := n.Stores[0].ID
			v.Reports[n.ID] = placement.NodeReport{Node: n.ID, Stores: []placement.StoreReport{{ID: s, CapacityBytes: c.capacity[s], UsedBytes: held[s],
				FreeBytes: c.capacity[s] - held[s]}}}
		}
	}
	for _, g := range c.Groups {
		var members []placement.Member
		for _, r := range g.Replicas {
			members = append(members, placement.Member{Key: r.Key, Node: r.Node, Voter: true, AckedIndex: 9})
		}
		for _, r := range g.Replicas {
			report, ok := v.Reports[r.Node]
			if !ok {
				continue
			}
			x := placement.ReplicaReport{Group: g.ID, Key: r.Key, State: placement.ReplicaFollower, Last: 9, Commit: 9}
			if r.Node == c.leaders[g.ID] {
				x.State, x.Members, x.ConfigIndex, x.LiveBytes = placement.ReplicaLeader, members, 9, c.Live[g.ID]
			}
			report.Replicas = append(report.Replicas, x)
			v.Reports[r.Node] = report
		}
	}
	return v.Indexed()
}

// Settle takes all groups on, adds those that are wanted, and moves replicas, until nothing is left to do. The error says that this does not
// end, or ctx's cause.
func (c *Cluster) Settle(ctx context.Context) error {
	for range 100_000 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v := c.View()
		steps := c.groupSteps(v)
		if len(c.Groups) < v.GroupsWanted() {
			c.addGroup(v)
			continue
		}
		if steps == 0 {
			moves := placement.ReplicaMoves(v)
			if len(moves) == 0 {
				return nil
			}
			for _, s := range moves {
				c.carryOut(s)
			}
		}
	}
	return errors.New("replicas move for ever")
}

func (c *Cluster) addGroup(v placement.View) {
	node, store, err := placement.Choose(v, nil, 0)
	if err != nil {
		panic(err) // no store works: no such cluster is made
	}
	id := storage.GroupID(len(c.Groups) + 1)
	c.Groups = append(c.Groups, storage.Group{ID: id, State: storage.GroupReady, LastIncarnation: 1,
		Replicas: []storage.Replica{{Node: node, Key: storage.ReplicaKey{Store: store, Incarnation: 1}, Role: storage.RoleVoter}}})
	c.leaders[id] = node
}

// groupSteps carries one step of each group out, and at most one that takes a replica to a store, as package control does.
func (c *Cluster) groupSteps(v placement.View) (n int) {
	planned := map[storage.StoreID]bool{}
	for _, g := range v.Groups {
		s := placement.Next(v, g)
		if s.Kind == placement.StepNone {
			continue
		}
		n++
		if s.Kind == placement.StepPlan && planned[s.Store] {
			continue
		}
		planned[s.Store] = true
		c.carryOut(s)
	}
	return n
}

func (c *Cluster) carryOut(s placement.Step) {
	g := &c.Groups[s.Group-1]
	replicas := slices.Clone(g.Replicas) // the view has the old ones
	at := slices.IndexFunc(replicas, func(r storage.Replica) bool { return r.Key == s.Key })
	switch s.Kind {
	case placement.StepPlan:
		g.LastIncarnation++
		replicas = append(replicas, storage.Replica{Node: s.Node, Key: storage.ReplicaKey{Store: s.Store, Incarnation: g.LastIncarnation}, Role: storage.RoleVoter})
		if len(replicas) > c.replicas || c.Live[s.Group] > 0 {
			c.MovedBytes += c.Live[s.Group]
			c.Moves++
		}
	case placement.StepSetRole:
		replicas[at].Role = s.Role
	case placement.StepTransfer:
		c.leaders[s.Group] = s.Node
	case placement.StepRemove, placement.StepForget:
		replicas = slices.Delete(replicas, at, at+1)
	}
	g.Replicas = replicas
}
