package catalog

import (
	"fmt"
	"math"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
)

// skipped is how far numbers of 64 bits go ahead at least when a catalog begins anew with a copy. What was given out after the copy was made is
// not known: none of it is ever given out again.
const skipped = 1 << 32

// Beyond returns a number that was not given out before: far above n, which is the highest that is known, and not below the time in
// nanoseconds. So a second recovery that begins with a copy from before the first one does not give out what the first one did.
func Beyond(n uint64, at time.Time) uint64 {
	return max(n+skipped, uint64(max(0, at.UnixNano())))
}

// eraBits are the lower bits of an incarnation: the others count recoveries, by two each.
const eraBits = 20

// SameEra reports whether no recovery has begun between two incarnations of a group. The catalog that begins anew does not know which replicas
// there were before it, if its copy was older, and must not take one for a leftover that it does not name.
func SameEra(a, b storage.Incarnation) bool { return a>>eraBits == b>>eraBits }

// Recovered returns the state with which the catalog begins anew, from a copy that may lack what was committed last. It changes nothing in
// the copy. index is that of the new state, and far above what was known before. known is a copy that may be newer, of which only the
// numbers count; nil: there is none. KindNotFound: a lost node is not in it. KindNoSpace: its numbers have no room left.
//
//   - Ids, incarnations and generations go on far ahead: none is given out twice (I2, I7).
//   - Lost nodes are removed, which is for ever. The others count as up until they are judged.
//   - Nobody holds a volume any more, and every volume has a new generation, which its groups do not know yet: who held it may have lost
//     it since, or another may have got it. All sessions are being closed.
//   - Groups have the replicas that are left, and those that were leaving count as voters: one of them may be all that there is now, and the
//     last voter is never given up. What is not so is recorded again from the groups' configurations.
//     The index of that is not compared with those of before: a replica that goes on alone may lack what they are of.
//   - Groups that are being created are forgotten: they may be ready, and hold data, and must not be made once more.
func (s *State) Recovered(index uint64, lost []storage.NodeID, known *State, at time.Time) (*State, error) {
	const op = "recover"
	if index <= s.applied {
		return nil, refuse(op, storage.KindInternal, "catalog", "index %d is not above %d", index, s.applied)
	}
	if known == nil {
		known = s
	}
	c := s.Clone()
	c.lastNode, c.lastGroup = max(c.lastNode, known.lastNode), max(c.lastGroup, known.lastGroup)
	if c.lastNode > math.MaxUint32-MaxNodes || c.lastGroup > math.MaxUint32-MaxGroups {
		return nil, refuse(op, storage.KindNoSpace, "catalog", "the last node is %s, the last group %s: there are no more numbers", c.lastNode, c.lastGroup)
	}
	c.applied = index
	c.lastNode += MaxNodes // no cluster has ever had more
	c.lastGroup += MaxGroups
	c.lastVolume = storage.VolumeID(Beyond(uint64(max(c.lastVolume, known.lastVolume)), at))
	c.lastSession = storage.SessionID(Beyond(uint64(max(c.lastSession, known.lastSession)), at))
	c.lastAttachment = storage.AttachmentID(Beyond(uint64(max(c.lastAttachment, known.lastAttachment)), at))
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
		if k, ok := known.groups[g.ID]; ok {
			g.LastIncarnation = max(g.LastIncarnation, k.LastIncarnation)
		}
		if g.LastIncarnation > math.MaxUint32-2<<eraBits {
			return nil, refuse(op, storage.KindNoSpace, "group "+g.ID.String(), "its last incarnation is %d: there are no more", g.LastIncarnation)
		}
		g.LastIncarnation = (g.LastIncarnation>>eraBits + 2) << eraBits // what came after the copy may have gone into the next era
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
		v.Generation = storage.Generation(Beyond(uint64(v.Generation), at))
		v.Moved, v.Revision = &storage.Move{At: at.UTC()}, index
		c.putVolume(v)
	}
	if c.InForce() >= EventsVersion {
		// Numbers of events go to people's programs, many of which know none above 2^53.
		c.lastEvent = max(max(c.lastEvent, known.lastEvent)+skipped, uint64(max(0, at.Unix()))<<12)
		for _, id := range lost {
			c.addEvent(at, storage.Event{Kind: storage.EventNodeRemoved, Node: id, Cause: storage.CauseRecovery})
		}
		c.addEvent(at, storage.Event{Kind: storage.EventRecovered, Count: int64(len(lost))})
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
		r.ConfigIndex = 0
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
