package placement

import (
	"cmp"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// PreferredLeaders gives every group the voter's node that should lead it, so that leaders spread evenly: going
// through the groups by id, each takes the node that leads the fewest so far. It looks at who votes and not at who is
// up, so that the answer does not change when a node restarts.
func PreferredLeaders(nodes []catalog.Node, groups []catalog.Group) map[storage.GroupID]storage.NodeID {
	draining := map[storage.NodeID]bool{}
	for _, n := range nodes {
		draining[n.ID] = !n.Usable()
	}
	leads := map[storage.NodeID]int{}
	preferred := make(map[storage.GroupID]storage.NodeID, len(groups))
	byID := slices.SortedFunc(slices.Values(groups), func(a, b catalog.Group) int { return cmp.Compare(a.ID, b.ID) })
	for _, g := range byID {
		var best storage.NodeID
		for _, r := range g.Replicas {
			if r.Role != catalog.RoleVoter {
				continue
			}
			if best == 0 || rank(r.Node, draining, leads).less(rank(best, draining, leads)) {
				best = r.Node
			}
		}
		if best != 0 {
			preferred[g.ID] = best
			leads[best]++
		}
	}
	return preferred
}

type leaderRank struct {
	draining bool
	leads    int
	node     storage.NodeID
}

func rank(n storage.NodeID, draining map[storage.NodeID]bool, leads map[storage.NodeID]int) leaderRank {
	return leaderRank{draining[n], leads[n], n}
}

func (a leaderRank) less(b leaderRank) bool {
	if a.draining != b.draining {
		return b.draining
	}
	return cmp.Or(cmp.Compare(a.leads, b.leads), cmp.Compare(a.node, b.node)) < 0
}

// LeaderMoves returns one StepTransfer for every group whose preferred leader works, votes, has caught up and does not
// lead it.
func LeaderMoves(v View) []Step {
	preferred := PreferredLeaders(v.Nodes, v.Groups)
	var moves []Step
	for _, g := range v.Groups {
		to := preferred[g.ID]
		leaderNode, leader, ok := v.Leader(g)
		if !ok || to == 0 || to == leaderNode {
			continue
		}
		r, _ := g.OnNode(to)
		m, in := leader.member(r.Key)
		if !in || !m.Voter || !v.caughtUp(g, leader, m) {
			continue
		}
		moves = append(moves, Step{Kind: StepTransfer, Group: g.ID, Node: to, Store: r.Key.Store, Key: r.Key,
			Leader: leaderNode, ConfigIndex: leader.ConfigIndex, Reason: "leaders spread evenly"})
	}
	return moves
}
