package status

import (
	"fmt"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/placement"
)

// Bounds of what counts as caught up. A replica has caught up when it is within placement.PromotionLag entries of its leader. It
// has fallen behind again only when it was maxLag or more behind for lagPatience. So load alone, with hundreds of entries in
// flight, does not make a node unready. A leader tells its commit index at least every second.
const (
	maxLag        = 1024
	lagPatience   = 10 * time.Second
	leaderSilence = 5 * time.Second
)

// readiness judges whether a node has its share of every group. While it finds nothing missing, stopping another node costs no
// group its majority because of this one. It remembers which replicas have caught up. Its method may be called concurrently.
type readiness struct {
	mu     sync.Mutex
	groups map[storage.GroupID]*catchUp // guarded by mu
}

// catchUp is what is remembered of one replica.
type catchUp struct {
	self  storage.ReplicaKey // another replica starts afresh
	done  bool               // it has caught up
	since time.Time          // from when on what its leader says counts
	far   time.Time          // since when it is maxLag or more behind; zero: it is not
}

// problems compares a node's replicas, as they are now, with what the catalog says of the groups.
func (r *readiness) problems(now time.Time, self storage.NodeID, v placement.View, replicas []Replica) (ps []Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := map[storage.GroupID]Replica{}
	for _, s := range replicas {
		held[s.Group] = s
	}
	for id := range r.groups {
		if _, ok := held[id]; !ok {
			delete(r.groups, id)
		}
	}
	for _, g := range v.Groups {
		s, ok := held[g.ID]
		if text := r.judgeLocked(now, self, v, g, s, ok); text != "" {
			ps = append(ps, Problem{groupSubject(g.ID), text})
		}
	}
	return ps
}

// judgeLocked returns why this node's share of a group is missing; empty: it is not.
func (r *readiness) judgeLocked(now time.Time, self storage.NodeID, v placement.View, g storage.Group, s Replica, held bool) string {
	role := storage.ReplicaRole("")
	for _, rep := range g.Replicas {
		if rep.Node == self && rep.Role != storage.RoleLeaving {
			role = rep.Role
		}
	}
	if role != storage.RoleVoter {
		return missing(self, v, g, role)
	}
	switch {
	case !held:
		return "the replica that this node should have is not there"
	case s.Reason != "":
		return "this node's replica is out of service: " + s.Reason
	case !votes(s):
		return "this node's replica is not in the group's configuration yet"
	}
	return r.lagLocked(now, s)
}

// votes reports whether the replica is a voter of the newest configuration that it knows.
func votes(s Replica) bool {
	m, ok := s.Member(s.Key)
	return ok && m.Voter
}

// missing says whether a group lacks voters because of this node, which has no voter of it. That is so when a replica is being made
// here, or when there are too few other nodes to hold the voters. A node that is down counts as one of the others: it may come
// back, and this node cannot help it.
func missing(self storage.NodeID, v placement.View, g storage.Group, role storage.ReplicaRole) string {
	others, voters := 0, 0
	usable := map[storage.NodeID]bool{}
	for _, n := range v.Nodes {
		usable[n.ID] = n.Usable()
		if n.ID != self && n.Usable() {
			others++
		}
	}
	for _, rep := range g.Replicas {
		if rep.Role == storage.RoleVoter && usable[rep.Node] {
			voters++
		}
	}
	want := v.Wanted()
	switch {
	case voters >= want:
		return ""
	case role != "":
		return fmt.Sprintf("%d of %d copies, and the next is being made on this node", voters, want)
	case others < want: // never so on a node that is drained: Wanted counts the others alone
		return fmt.Sprintf("%d of %d copies, and this node has none yet", voters, want)
	}
	return ""
}

// lagLocked says how far a voter is behind its leader, if that is too far.
func (r *readiness) lagLocked(now time.Time, s Replica) string {
	if r.groups == nil {
		r.groups = map[storage.GroupID]*catchUp{}
	}
	c := r.groups[s.Group]
	if c == nil || c.self != s.Key {
		c = &catchUp{self: s.Key}
		r.groups[s.Group] = c
	}
	lag := uint64(0)
	if s.LeaderCommit > s.Applied {
		lag = s.LeaderCommit - s.Applied
	}
	heard := s.LeaderHeard.After(c.since) && now.Sub(s.LeaderHeard) < leaderSilence
	switch {
	case s.Leads:
		c.done, c.far = true, time.Time{}
	case s.Leader == 0: // what an earlier leader said does not count for the next one
		c.done, c.since, c.far = false, now, time.Time{}
		return "" // unready says that it has no leader
	case s.PullBytes > 0:
		c.done, c.far = false, time.Time{}
		return fmt.Sprintf("%d of %d MiB of it are pulled into this node", s.PulledBytes>>20, s.PullBytes>>20)
	case !c.done && !heard:
		return "this node's replica has not heard from its leader what it lacks"
	case !c.done && lag > placement.PromotionLag:
		return fmt.Sprintf("this node's replica is %d entries behind", lag)
	case !c.done:
		c.done = true
	case lag < maxLag:
		c.far = time.Time{}
	case c.far.IsZero():
		c.far = now
	case now.Sub(c.far) >= lagPatience:
		c.done, c.far = false, time.Time{}
		return fmt.Sprintf("this node's replica has fallen %d entries behind", lag)
	}
	return ""
}
