package placement

import (
	"cmp"
	"slices"

	storage "github.com/storaged/storaged"
)

// PreferredLeaders gives every group the voter's node that should lead it, so that leaders spread evenly, and within that
// lead where their volumes are used. Going through the groups by id, each takes the node that leads the fewest so far; then
// groups change places by their uses. It looks at who votes and not at who is up, so that the answer does not change when
// a node restarts.
func PreferredLeaders(nodes []storage.Node, groups []storage.Group, uses Uses) map[storage.GroupID]storage.NodeID {
	leaves := map[storage.NodeID]bool{}
	for _, n := range nodes {
		leaves[n.ID] = !n.MayTake()
	}
	leads := map[storage.NodeID]int{}
	preferred := make(map[storage.GroupID]storage.NodeID, len(groups))
	byID := slices.SortedFunc(slices.Values(groups), func(a, b storage.Group) int { return cmp.Compare(a.ID, b.ID) })
	for _, g := range byID {
		var best storage.NodeID
		for _, r := range g.Replicas {
			if r.Role != storage.RoleVoter {
				continue
			}
			if best == 0 || rank(r.Node, leaves, leads).less(rank(best, leaves, leads)) {
				best = r.Node
			}
		}
		if best != 0 {
			preferred[g.ID] = best
			leads[best]++
		}
	}
	bringNear(preferred, nodes, byID, uses)
	return preferred
}

type leaderRank struct {
	leaves bool // the node drains, or is in maintenance: it leads only what nobody else can
	leads  int
	node   storage.NodeID
}

func rank(n storage.NodeID, leaves map[storage.NodeID]bool, leads map[storage.NodeID]int) leaderRank {
	return leaderRank{leaves[n], leads[n], n}
}

func (a leaderRank) less(b leaderRank) bool {
	if a.leaves != b.leaves {
		return b.leaves
	}
	return cmp.Or(cmp.Compare(a.leads, b.leads), cmp.Compare(a.node, b.node)) < 0
}

// Uses says for every group how many volumes with a part in it each node's gateway serves.
type Uses map[storage.GroupID]map[storage.NodeID]int

// Add counts a volume with a part in group g that the gateway of node n serves.
func (u Uses) Add(g storage.GroupID, n storage.NodeID) {
	if u[g] == nil {
		u[g] = map[storage.NodeID]int{}
	}
	u[g][n]++
}

// bringNear changes an even spread of leaders so that groups are led where their volumes are used, which saves every
// request a way between nodes. Two groups swap their leaders' nodes, so the spread stays as even as it was. They swap only
// if both together are then used more at their leaders, so groups that nobody uses stay where they are.
func bringNear(preferred map[storage.GroupID]storage.NodeID, nodes []storage.Node, groups []storage.Group, uses Uses) {
	mayLead := map[storage.NodeID]bool{}
	for _, n := range nodes {
		mayLead[n.ID] = n.MayTake()
	}
	used := slices.DeleteFunc(slices.Clone(groups), func(g storage.Group) bool { return uses[g.ID] == nil || preferred[g.ID] == 0 })
	most := func(g storage.Group) (best storage.NodeID, n int) {
		for _, r := range g.Replicas {
			u := uses[g.ID][r.Node]
			if r.Role == storage.RoleVoter && mayLead[r.Node] && (u > n || u == n && u > 0 && r.Node < best) {
				best, n = r.Node, u
			}
		}
		return best, n
	}
	slices.SortFunc(used, func(a, b storage.Group) int {
		_, ua := most(a)
		_, ub := most(b)
		return cmp.Or(cmp.Compare(ub, ua), cmp.Compare(a.ID, b.ID))
	})
	for _, g := range used {
		from := preferred[g.ID]
		to, _ := most(g)
		if to == 0 || to == from {
			continue
		}
		var with storage.GroupID
		best := 0
		for _, h := range groups {
			if preferred[h.ID] != to || !votes(h, from) {
				continue
			}
			gain := uses[g.ID][to] - uses[g.ID][from] + uses[h.ID][from] - uses[h.ID][to]
			if gain > best || gain == best && gain > 0 && h.ID < with {
				best, with = gain, h.ID
			}
		}
		if with != 0 {
			preferred[g.ID], preferred[with] = to, from
		}
	}
}

func votes(g storage.Group, n storage.NodeID) bool {
	r, ok := g.OnNode(n)
	return ok && r.Role == storage.RoleVoter
}

// LeaderMoves returns one StepTransfer for every group whose preferred leader works, votes, has caught up and does not
// lead it.
func LeaderMoves(v View) []Step {
	preferred := PreferredLeaders(v.Nodes, v.Groups, v.Uses)
	var moves []Step
	for _, g := range v.Groups {
		to := preferred[g.ID]
		leaderNode, leader, ok := v.Leader(g)
		if !ok || !leader.committed() || to == 0 || to == leaderNode {
			continue
		}
		r, _ := g.OnNode(to)
		m, in := leader.Member(r.Key)
		if !in || !m.Voter || !v.caughtUp(g, leader, m) {
			continue
		}
		moves = append(moves, Step{Kind: StepTransfer, Group: g.ID, Node: to, Store: r.Key.Store, Key: r.Key,
			Leader: leaderNode, ConfigIndex: leader.ConfigIndex, Reason: "leaders spread evenly, near to who uses the volumes"})
	}
	return moves
}
