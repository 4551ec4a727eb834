package placement

import (
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// A replica that will not come back is replaced in steps. Each step is safe, and is found again after an interruption.
// The lost replica is recorded as leaving. If another node can take a replica, the new one is pulled, joined and
// promoted first. Then the lost one is removed from the configuration, dropped if its node can be asked, and
// forgotten. When all nodes of the cluster hold a replica of the group, the node of a damaged one is the only place
// for the new one. The damaged one then goes first, provided that the others are a majority without it.
//
// A voter whose node has been down for long may still come back, and draining may be ended. It stays what it is until another replica has
// caught up, and only then is recorded as leaving. If it is back before, the new one goes.

// loss says why a replica will not come back by itself.
type loss uint8

const (
	lossNone    loss = iota
	lossDamaged      // its log is damaged, its store works: the new one may lie on the same store
	lossRemoved      // its node was removed for ever
	lossStore        // its disk failed; it may be good again when the node starts anew
	lossNode         // it did not vote yet, and its node is down
	lossAway         // it votes, and its node has been down for long
	lossDrain        // its node drains
	lossSurplus      // there are as many voters without it as are wanted, which work
)

// String returns the loss in words, as in logs.
func (l loss) String() string {
	return [...]string{lossNone: "it is well", lossDamaged: "its log is damaged", lossRemoved: "its node was removed",
		lossStore: "its disk has failed", lossNode: "its node is down", lossAway: "its node has been down for long",
		lossDrain: "its node drains", lossSurplus: "there are enough voters"}[l]
}

// lost judges a replica. A voter on a node that is down is not lost before that has been so for long: the node may come back.
func (p *planner) lost(r storage.Replica) loss {
	n, known := p.v.node(r.Node)
	report, heard := p.v.Reports[r.Node]
	own, holds := report.Replica(p.g.ID, r.Key)
	switch {
	case !known || n.State == storage.NodeRemoved:
		return lossRemoved
	case r.Role != storage.RoleVoter && r.Role != storage.RoleLeaving && p.sound() >= p.wanted(), p.surplus(r):
		return lossSurplus
	case n.State == storage.NodeDown && (r.Role == storage.RolePulling || r.Role == storage.RoleLearner):
		return lossNode
	case p.isAway(r):
		return lossAway
	case heard && !p.v.storeWorks(r.Node, r.Key.Store):
		return lossStore
	case heard && holds && own.State == ReplicaDamaged:
		return lossDamaged
	case n.Intent == storage.IntentDrain:
		return lossDrain
	}
	return lossNone
}

// isAway reports whether the replica votes, and its node has been down for long.
func (p *planner) isAway(r storage.Replica) bool {
	n, _ := p.v.node(r.Node)
	return r.Role == storage.RoleVoter && n.State == storage.NodeDown && p.v.Away[r.Node]
}

// drains reports whether the replica votes, and its node drains.
func (p *planner) drains(r storage.Replica) bool {
	n, _ := p.v.node(r.Node)
	return r.Role == storage.RoleVoter && n.Intent == storage.IntentDrain
}

// toReplace returns how many voters stay until another replica has caught up: their nodes have been down for long, or drain.
func (p *planner) toReplace() (n int) {
	for _, r := range p.g.Replicas {
		if p.isAway(r) || p.drains(r) {
			n++
		}
	}
	return n
}

// drainsAlone reports whether the replica is the only voter, and its node drains. It is not recorded as leaving before another one votes.
func (p *planner) drainsAlone(r storage.Replica) bool {
	return p.drains(r) && p.g.Count(storage.RoleVoter) == 1
}

// departed reports whether a leaving voter goes before another one votes: its node is down, another replica has caught up, and the others
// have a majority without it. With the newcomer as one voter more, the group would stand still if that one failed.
func (p *planner) departed(r storage.Replica) bool {
	n, known := p.v.node(r.Node)
	_, quorum := p.without(r.Key)
	return known && n.State == storage.NodeDown && quorum && p.successor()
}

// sound returns how many voters work, have caught up and stay. A voter whose node is down, or is back and has not caught up, may not come
// back: what was copied in its place is not thrown away for it, whoever leads the catalog by then and knows how long it was away.
func (p *planner) sound() (n int) {
	for _, m := range p.leader.Members {
		on, _ := p.v.node(m.Node)
		if r, known := p.g.Replica(m.Key); known && m.Voter && r.Role == storage.RoleVoter && on.Intent != storage.IntentDrain &&
			p.v.storeWorks(m.Node, m.Key.Store) && (m.Key == p.leader.Key || p.v.caughtUp(p.g, p.leader, m)) {
			n++
		}
	}
	return n
}

// well reports whether a replica that is recorded as leaving, and votes, is as good as any: it moves elsewhere, and nothing has been lost with it.
func (p *planner) well(r storage.Replica) bool {
	m, in := p.leader.Member(r.Key)
	return in && m.Voter && p.lost(r) == lossNone && (m.Key == p.leader.Key || p.v.caughtUp(p.g, p.leader, m))
}

// stay makes a leaving replica a voter again, when what was to take its place is lost, or can be had nowhere. Otherwise the group would have fewer voters than
// are wanted for as long as that lasts, although so many work.
func (p *planner) stay() (Step, bool) {
	if p.v.Cluster.Version < catalog.StayVersion || p.staying() >= p.wanted() || p.coming() {
		return Step{}, false
	}
	for _, r := range p.g.Replicas {
		if r.Role != storage.RoleLeaving || !p.well(r) {
			continue
		}
		_, _, err := Choose(p.v, p.g.Replicas, p.leader.LiveBytes)
		if err == nil && p.staying() == p.g.Count(storage.RoleVoter) {
			continue // no voter is lost
		}
		s := p.step(StepSetRole, r)
		s.Role, s.Stays, s.Reason = storage.RoleVoter, true, "what was to take its place is lost"
		if err != nil {
			s.Reason = "nothing can take its place: " + err.Error()
		}
		return s, true
	}
	return Step{}, false
}

// coming reports whether a replica is on its way to vote.
func (p *planner) coming() bool {
	return slices.ContainsFunc(p.g.Replicas, func(r storage.Replica) bool {
		return (r.Role == storage.RolePulling || r.Role == storage.RoleLearner) && p.lost(r) == lossNone
	})
}

// staying returns how many voters are neither lost nor on a node that drains.
func (p *planner) staying() (n int) {
	for _, r := range p.g.Replicas {
		if why := p.lost(r); r.Role == storage.RoleVoter && (why == lossNone || why == lossSurplus) {
			n++
		}
	}
	return n
}

// surplus reports whether a voter is one too many: one that was to leave has stayed, and the one that was lost is back. The newest goes.
func (p *planner) surplus(r storage.Replica) bool {
	if r.Role != storage.RoleVoter || r.Key == p.leader.Key || p.sound() <= max(p.v.Cluster.Replicas, p.wanted()) {
		return false
	}
	return !slices.ContainsFunc(p.g.Replicas, func(o storage.Replica) bool {
		return o.Role == storage.RoleVoter && o.Key != p.leader.Key && o.Key.Incarnation > r.Key.Incarnation
	})
}

// blocked reports whether a leaving replica keeps other voters from being given up: it is lost itself, so one after the other.
func (p *planner) blocked() bool {
	return slices.ContainsFunc(p.g.Replicas, func(r storage.Replica) bool { return r.Role == storage.RoleLeaving && !p.well(r) })
}

// successor reports whether a replica that does not vote yet has caught up, and stays.
func (p *planner) successor() bool {
	for _, m := range p.leader.Members {
		if r, known := p.g.Replica(m.Key); known && !m.Voter && r.Role == storage.RoleLearner && p.v.caughtUp(p.g, p.leader, m) && p.lost(r) == lossNone {
			return true
		}
	}
	return false
}

// giveUp records a lost replica as leaving, one voter at a time, and only if that brings another one. The last voter
// is never given up: what it holds is all there is.
func (p *planner) giveUp() (Step, bool) {
	for _, r := range p.g.Replicas {
		why := p.lost(r)
		if why == lossNone || r.Role == storage.RoleLeaving || r.Role == storage.RoleVoter && p.blocked() {
			continue
		}
		waits := p.sound() < p.wanted() && (why == lossAway || why == lossDrain && r.Role == storage.RoleVoter && !p.spare(r)) && !p.successor()
		if r.Role == storage.RoleVoter {
			if _, quorum := p.without(r.Key); !quorum || p.g.Count(storage.RoleVoter) == 1 {
				p.waiting = "replica " + r.Key.String() + " is lost, and the others are no majority that has caught up"
				continue
			}
		}
		if _, _, err := Choose(p.v, p.g.Replicas, p.leader.LiveBytes); err != nil && (waits || why == lossNode || why == lossDrain && !p.successor() && !p.spare(r) ||
			why == lossStore && (r.Role != storage.RoleVoter || !p.successor())) {
			p.waiting = "replica " + r.Key.String() + " is to be replaced (" + why.String() + "): " + err.Error()
			continue
		}
		if waits {
			continue
		}
		s := p.step(StepSetRole, r)
		s.Role, s.Reason = storage.RoleLeaving, why.String()
		return s, true
	}
	return Step{}, false
}

// inTheWay reports whether a leaving voter must go before its replacement comes. That is so when it is damaged, no
// replacement is on its way, only its own node can take a replica, and the others are a majority both with it and
// without it.
func (p *planner) inTheWay(r storage.Replica) bool {
	if p.lost(r) != lossDamaged || len(p.g.Replicas)-p.g.Count(storage.RoleLeaving) >= p.wanted() {
		return false
	}
	if _, _, err := Choose(p.v, p.g.Replicas, p.leader.LiveBytes); err == nil {
		return false
	}
	rest := slices.DeleteFunc(slices.Clone(p.g.Replicas), func(x storage.Replica) bool { return x.Key == r.Key })
	// What the damaged one holds is room for the new one, once it is gone.
	if _, _, err := Choose(p.v, rest, 0); err != nil {
		return false
	}
	_, quorum := p.without(r.Key)
	return quorum
}

// stray takes out members that the catalog has forgotten; the leader refuses if the report is older than its
// configuration.
func (p *planner) stray() (Step, bool) {
	for _, m := range p.leader.Members {
		if _, known := p.g.Replica(m.Key); known || m.Key == p.leader.Key {
			continue
		}
		if _, quorum := p.without(m.Key); !m.Voter || quorum {
			return p.step(StepRemove, storage.Replica{Node: m.Node, Key: m.Key}), true
		}
	}
	return Step{}, false
}

// orphan drops what a node still holds of a replica that was forgotten while the node was down. The catalog names a
// replica before its node makes it, and this view of the catalog is not older than the reports.
func (p *planner) orphan() (Step, bool) {
	for _, r := range p.v.unnamedOf(p.g) {
		if _, member := p.leader.Member(r.Key); !member && p.v.storeWorks(r.Node, r.Key.Store) {
			return p.step(StepDrop, r), true
		}
	}
	return Step{}, false
}
