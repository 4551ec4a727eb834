package placement

import (
	"slices"

	storage "github.com/storaged/storaged"
)

// Move is what becomes of one replica when its node leaves.
type Move struct {
	Group storage.GroupID
	Bytes int64 // that live in the group; 0: not known
	// To is the node that would take it as things are; 0: it cannot move, and Why says why.
	To  storage.NodeID
	Why string
}

// Moves returns where the replicas of a node would go if it drained, by the ids of their groups. It is decided as Next does, group by
// group, with what is planned so far. What happens meanwhile may change it.
func Moves(v View, node storage.NodeID) (moves []Move) {
	v.Nodes, v.Groups = slices.Clone(v.Nodes), slices.Clone(v.Groups)
	for i, n := range v.Nodes {
		if n.ID == node {
			v.Nodes[i].Intent = storage.IntentDrain
		}
	}
	v = v.Indexed()
	for i, g := range v.Groups {
		if r, on := g.OnNode(node); !on || r.Role == storage.RoleLeaving {
			continue
		}
		_, leader, led := v.Leader(g)
		m := Move{Group: g.ID, Bytes: leader.LiveBytes}
		to, store, err := Choose(v, g.Replicas, leader.LiveBytes)
		switch {
		case !led:
			m.Why = "nobody leads it, or its leader is not heard of"
		case err != nil:
			m.Why = err.Error()
		default:
			m.To = to
			v.Groups[i].Replicas = append(slices.Clone(g.Replicas), storage.Replica{Node: to, Role: storage.RolePulling, Key: storage.ReplicaKey{Store: store}})
			v = v.Indexed() // the groups that follow count it
		}
		moves = append(moves, m)
	}
	return moves
}

// Without returns which groups would have no majority that works if the node were down, and which would have one, and one working voter
// fewer than now. Both are by ascending id.
func Without(v View, node storage.NodeID) (stopped, thinner []storage.GroupID) {
	for _, g := range v.Groups {
		if r, on := g.OnNode(node); !on || r.Role != storage.RoleVoter && r.Role != storage.RoleLeaving {
			continue
		}
		_, leader, led := v.Leader(g)
		voters, well := 0, 0
		for _, m := range leader.Members {
			if !m.Voter {
				continue
			}
			voters++
			if m.Node != node && (m.Key == leader.Key || v.caughtUp(g, leader, m)) {
				well++
			}
		}
		if !led || well < voters/2+1 {
			stopped = append(stopped, g.ID)
		} else {
			thinner = append(thinner, g.ID)
		}
	}
	return stopped, thinner
}
