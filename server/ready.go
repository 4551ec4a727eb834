package server

import (
	"fmt"
	"sync"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// Bounds of what counts as caught up. A replica has caught up when it is within placement.PromotionLag entries of its
// leader; it has fallen behind again only when it was maxLag or more behind for lagPatience, so that load alone, which has
// hundreds of entries under way, does not make a node unready. A leader tells its commit index at least every second.
const (
	maxLag        = 1024
	lagPatience   = 10 * time.Second
	leaderSilence = 5 * time.Second
)

// readiness says what of a node's own share is not there yet: stopping another node costs nothing that is this node's
// fault while it says nothing. It remembers which replicas have caught up. Its method may be called concurrently.
type readiness struct {
	mu     sync.Mutex
	groups map[storage.GroupID]*catchUp // guarded by mu
}

// catchUp is what is remembered of one replica.
type catchUp struct {
	self  string    // the replica; another one starts afresh
	done  bool      // it has caught up
	since time.Time // from when on what its leader says counts
	far   time.Time // since when it is maxLag or more behind; zero: it is not
}

// problems judges a node's replicas, as they are at now, by the catalog's view of the groups.
func (r *readiness) problems(now time.Time, self storage.NodeID, v placement.View, replicas []replication.GroupStatus) (ps []problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := map[storage.GroupID]replication.GroupStatus{}
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
		delete(held, g.ID)
		if text := r.judgeLocked(now, self, v, g, s, ok); text != "" {
			ps = append(ps, problem{"group " + g.ID.String(), text})
		}
	}
	return ps
}

// judgeLocked returns what keeps a group from having this node's share; empty for nothing.
func (r *readiness) judgeLocked(now time.Time, self storage.NodeID, v placement.View, g catalog.Group, s replication.GroupStatus, held bool) string {
	role := catalog.Role("")
	for _, rep := range g.Replicas {
		if rep.Node == self && rep.Role != catalog.RoleLeaving {
			role = rep.Role
		}
	}
	if role != catalog.RoleVoter {
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
func votes(s replication.GroupStatus) bool {
	for _, m := range s.Replicas {
		if m.ID == s.Self {
			return m.Voter
		}
	}
	return false
}

// missing says whether a group is short of voters because this node, which has none of it, should have one: one is being
// brought up here, or no other nodes are left for it. A node that is down counts among the others: it may come back, and
// its absence is not this node's.
func missing(self storage.NodeID, v placement.View, g catalog.Group, role catalog.Role) string {
	others, voters := 0, 0
	usable := map[storage.NodeID]bool{}
	for _, n := range v.Nodes {
		usable[n.ID] = n.Usable()
		if n.ID != self && n.Usable() {
			others++
		}
	}
	for _, rep := range g.Replicas {
		if rep.Role == catalog.RoleVoter && usable[rep.Node] {
			voters++
		}
	}
	want := v.Wanted()
	switch {
	case voters >= want:
		return ""
	case role != "":
		return fmt.Sprintf("%d of %d copies, and the next is being made on this node", voters, want)
	case usable[self] && others < want:
		return fmt.Sprintf("%d of %d copies, and this node has none yet", voters, want)
	}
	return ""
}

// lagLocked says how far a voter is behind its leader, if that is too far.
func (r *readiness) lagLocked(now time.Time, s replication.GroupStatus) string {
	if r.groups == nil {
		r.groups = map[storage.GroupID]*catchUp{}
	}
	c := r.groups[s.Group]
	if c == nil || c.self != string(s.Self) {
		c = &catchUp{self: string(s.Self)}
		r.groups[s.Group] = c
	}
	lag := uint64(0)
	if s.LeaderCommit > s.AppliedIndex {
		lag = s.LeaderCommit - s.AppliedIndex
	}
	heard := s.LeaderHeard.After(c.since) && now.Sub(s.LeaderHeard) < leaderSilence
	switch {
	case s.Role == "leader" && s.Ready:
		c.done, c.far = true, time.Time{}
	case s.Leader == 0: // what was heard before says nothing of what comes after
		c.done, c.since, c.far = false, now, time.Time{}
		return "" // that it has no leader is told anyway
	case s.PullTotalBytes > 0:
		c.done, c.far = false, time.Time{}
		return fmt.Sprintf("%d of %d MiB of it are pulled into this node", s.PulledBytes>>20, s.PullTotalBytes>>20)
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
