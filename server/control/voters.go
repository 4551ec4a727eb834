package control

import (
	"slices"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/placement"
)

// maxCatalogVoters is how many nodes vote in the catalog; the others follow it.
const maxCatalogVoters = 5

// serverChange is one change of the catalog's configuration.
type serverChange struct {
	Change runner.Change
	Node   storage.NodeID
}

// catalogChanges decides the next change of the catalog's own members. Removed nodes leave, and new nodes become
// followers. Followers that have caught up become voters, back to back, so that the number of voters is odd and at
// most five; the first nodes come first. More than one change is returned only to get past an even number. A node
// has caught up when it holds the configuration that made it a follower, and nearly all of the log.
//
// A voter on a node that has been down for long (placement.Away) gives its vote to a follower that has caught up: it leaves right
// before, and is then taken in as a follower again. So a newcomer that fails does not stop the others. One on a node that drains works: its
// successor is taken in first, and it leaves right after. Without a successor it leaves only if the others bear as many failures. Self,
// which leads, stays; it hands over first.
//
// Nobody leaves unless a majority of the voters that are left is up and has caught up: what a configuration cannot commit it
// cannot take back either, and the catalog would stand still for good.
func catalogChanges(servers []raft.Server, v placement.View, self storage.NodeID, configIndex, lastIndex uint64) []serverChange {
	member := map[storage.NodeID]raft.ServerSuffrage{}
	voters := map[storage.NodeID]bool{}
	for _, s := range servers {
		node, _ := runner.ParseNodeAddress(s.Address)
		member[node] = s.Suffrage
		if s.Suffrage == raft.Voter {
			voters[node] = true
		}
	}
	usable, removed := 0, storage.NodeID(0)
	var ready, away, drained []storage.NodeID
	for _, n := range v.Nodes {
		report := v.Reports[n.ID]
		suffrage, in := member[n.ID]
		switch {
		case n.State == storage.NodeRemoved:
			if in && removed == 0 && (suffrage != raft.Voter || len(voters) > 1) {
				removed = n.ID
			}
			continue
		case !in:
			return []serverChange{{runner.AddNonvoter, n.ID}}
		}
		drains := n.Intent == storage.IntentDrain
		if !drains {
			usable++
		}
		switch {
		case suffrage != raft.Voter && !drains && nearCatalog(v, n, lastIndex) && report.CatalogIndex >= max(configIndex, 1):
			ready = append(ready, n.ID)
		case suffrage == raft.Voter && n.State == storage.NodeDown && v.Away[n.ID]:
			away = append(away, n.ID)
		case suffrage == raft.Voter && drains && n.ID != self:
			drained = append(drained, n.ID)
		}
	}
	if removed != 0 {
		if !catalogWithout(servers, v, self, removed, lastIndex) {
			return nil
		}
		return []serverChange{{runner.RemoveServer, removed}}
	}
	want := min(usable, maxCatalogVoters)
	want -= (want + 1) % 2
	take := min(want-len(voters), len(ready))
	if (len(voters)+take)%2 == 0 {
		take--
	}
	if take > 0 {
		var changes []serverChange
		for _, n := range ready[:take] {
			changes = append(changes, serverChange{runner.AddVoter, n})
		}
		return changes
	}
	return catalogLeaves(len(voters), want, ready, away, drained, func(id storage.NodeID) bool { return catalogWithout(servers, v, self, id, lastIndex) })
}

// catalogLeaves decides which of the voters on nodes that are away, or drain, leaves next, and who takes its place.
func catalogLeaves(voters, want int, ready, away, drained []storage.NodeID, without func(storage.NodeID) bool) []serverChange {
	for _, n := range away {
		switch {
		case !without(n):
		case voters > want:
			return []serverChange{{runner.RemoveServer, n}}
		case len(ready) > 0:
			return []serverChange{{runner.RemoveServer, n}, {runner.AddVoter, ready[0]}}
		}
	}
	for _, n := range drained {
		switch {
		case voters%2 == 0 && without(n): // the others bear as many failures
			return []serverChange{{runner.RemoveServer, n}}
		case voters%2 == 1 && len(ready) > 0 && without(n):
			return []serverChange{{runner.AddVoter, ready[0]}, {runner.RemoveServer, n}}
		}
	}
	return nil
}

// nearCatalog reports whether a node is up, and holds nearly all of the catalog's log.
func nearCatalog(v placement.View, n storage.Node, lastIndex uint64) bool {
	report, heard := v.Reports[n.ID]
	return heard && n.State == storage.NodeUp && report.CatalogIndex+placement.PromotionLag >= lastIndex
}

// catalogWithout reports whether the catalog can do without a node, now: it does not vote there, or a majority of the other voters is up and
// has caught up. Self, which leads, has.
func catalogWithout(servers []raft.Server, v placement.View, self, id storage.NodeID, lastIndex uint64) bool {
	left, well, votes := 0, 0, false
	for _, s := range servers {
		node, _ := runner.ParseNodeAddress(s.Address)
		switch {
		case s.Suffrage != raft.Voter:
		case node == id:
			votes = true
		default:
			left++
			if node == self || slices.ContainsFunc(v.Nodes, func(n storage.Node) bool { return n.ID == node && nearCatalog(v, n, lastIndex) }) {
				well++
			}
		}
	}
	return !votes || well >= left/2+1
}

// catalogTransferTarget returns the voter that the catalog's leader, self, hands over to because self drains or is in maintenance: one that takes its
// part, is up, and has nearly all of the log. ok is false if self stays.
func catalogTransferTarget(servers []raft.Server, v placement.View, self storage.NodeID, lastIndex uint64) (to raft.Server, ok bool) {
	may := map[storage.NodeID]bool{}
	for _, n := range v.Nodes {
		report, heard := v.Reports[n.ID]
		may[n.ID] = n.MayTake() && (n.ID == self || heard && n.State == storage.NodeUp && report.CatalogIndex+placement.PromotionLag >= lastIndex)
	}
	if may[self] {
		return raft.Server{}, false
	}
	for _, s := range servers {
		if node, _ := runner.ParseNodeAddress(s.Address); s.Suffrage == raft.Voter && may[node] {
			return s, true
		}
	}
	return raft.Server{}, false
}
