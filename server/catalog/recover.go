package catalog

import (
	"fmt"
	"math"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
)

// How far the numbers go ahead when a catalog begins anew with a copy. What was given out after the copy was made is not known: none of
// it is ever given out again.
const (
	// skippedIDs is for volumes, sessions, attachments and generations.
	skippedIDs = 1 << 32
	// skippedIncarnations is for each group.
	skippedIncarnations = 1 << 20
	// SkippedIndexes is by how much the index of the log is ahead of everything that was known before.
	SkippedIndexes = 1 << 32
)

// Recovered returns the state with which the catalog begins anew, from a copy that may lack what was committed last. It changes nothing in
// the copy. index is that of the new state, and far above what was known before. KindNotFound: a lost node is not in it. KindNoSpace: its
// numbers have no room left.
//
//   - Ids, incarnations and generations go on far ahead: none is given out twice (I2, I7).
//   - Lost nodes are removed, which is for ever. The others count as up until they are judged.
//   - Nobody holds a volume any more, and every volume has a new generation, which its groups do not know yet: who held it may have lost
//     it since, or another may have got it. All sessions are being closed.
//   - Groups have the replicas that are left, and those that were leaving count as voters: one of them may be all that there is now, and the
//     last voter is never given up. What is not so is recorded again from the groups' configurations.
//   - Groups that are being created are forgotten: they may be ready, and hold data, and must not be made once more.
func (s *State) Recovered(index uint64, lost []storage.NodeID, at time.Time) (*State, error) {
	const op = "recover"
	if index <= s.applied {
		return nil, refuse(op, storage.KindInternal, "catalog", "index %d is not above %d", index, s.applied)
	}
	if s.lastNode > math.MaxUint32-MaxNodes || s.lastGroup > math.MaxUint32-MaxGroups {
		return nil, refuse(op, storage.KindNoSpace, "catalog", "the last node is %s, the last group %s: there are no more numbers", s.lastNode, s.lastGroup)
	}
	c := s.Clone()
	c.applied = index
	c.lastNode += MaxNodes // no cluster has ever had more
	c.lastGroup += MaxGroups
	c.lastVolume += skippedIDs
	c.lastSession += skippedIDs
	c.lastAttachment += skippedIDs
	for _, id := range lost {
		if _, ok := c.nodes[id]; !ok {
			return nil, refuse(op, storage.KindNotFound, "node "+id.String(), "the copy knows no such node")
		}
	}
	for _, n := range c.Nodes() {
		if n.State == storage.NodeRemoved {
			continue
		}
		n.State, n.SilentSince = storage.NodeUp, time.Time{}
		if slices.Contains(lost, n.ID) {
			n.State, n.Intent, n.IntentUntil = storage.NodeRemoved, storage.IntentServe, time.Time{}
		}
		c.putNode(n)
	}
	for _, g := range c.Groups() {
		if g.State == storage.GroupCreating {
			c.dropGroup(g.ID)
			continue
		}
		if g.LastIncarnation > math.MaxUint32-skippedIncarnations {
			return nil, refuse(op, storage.KindNoSpace, "group "+g.ID.String(), "its last incarnation is %d: there are no more", g.LastIncarnation)
		}
		g.LastIncarnation += skippedIncarnations
		g.Replicas = leftOf(g.Replicas, lost)
		c.putGroup(g)
	}
	for _, a := range c.Attachments() {
		c.dropAttachment(a.ID)
	}
	for _, x := range c.Sessions() {
		x.State = SessionClosing
		c.putSession(x)
	}
	for _, v := range c.Volumes() {
		v.Generation += skippedIDs
		v.Moved, v.Revision = &storage.Move{At: at.UTC()}, index
		c.putVolume(v)
	}
	if err := c.Check(); err != nil {
		return nil, storage.E(op, storage.KindInternal, "catalog", fmt.Errorf("what would begin is no catalog: %w", err))
	}
	return c, nil
}

// leftOf returns the replicas of a group that are not on lost nodes, with a voter among them; all, as they are, if none of those that are left
// holds what the group did.
func leftOf(all []storage.Replica, lost []storage.NodeID) []storage.Replica {
	var left []storage.Replica
	voters, learner := 0, -1
	for _, r := range all {
		if slices.Contains(lost, r.Node) {
			continue
		}
		switch r.Role {
		case storage.RoleVoter, storage.RoleLeaving:
			r.Role = storage.RoleVoter
			voters++
		case storage.RoleLearner:
			learner = len(left)
		}
		left = append(left, r)
	}
	switch {
	case voters > 0:
		return left
	case learner >= 0: // it was promoted since, or the group is lost
		left[learner].Role = storage.RoleVoter
		return left
	}
	return all
}
