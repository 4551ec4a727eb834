package control

import (
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
// before, and is then taken in as a follower again. So a newcomer that fails does not stop the others. So does one on a node that
// drains, unless it is self, which leads: it hands over first.
func catalogChanges(servers []raft.Server, v placement.View, self storage.NodeID, configIndex, lastIndex uint64) []serverChange {
	member := map[storage.NodeID]raft.ServerSuffrage{}
	voters := 0
	for _, s := range servers {
		node, _ := runner.ParseNodeAddress(s.Address)
		member[node] = s.Suffrage
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	usable, removed := 0, storage.NodeID(0)
	var ready, away []serverChange
	for _, n := range v.Nodes {
		suffrage, in := member[n.ID]
		switch {
		case n.State == storage.NodeRemoved:
			if in && removed == 0 && (suffrage != raft.Voter || voters > 1) {
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
		if suffrage == raft.Voter && (n.State == storage.NodeDown && v.Away[n.ID] || drains && n.ID != self) {
			away = append(away, serverChange{runner.RemoveServer, n.ID})
		}
		report, heard := v.Reports[n.ID]
		if suffrage != raft.Voter && heard && n.State == storage.NodeUp && !drains && report.CatalogIndex >= max(configIndex, 1) &&
			report.CatalogIndex+placement.PromotionLag >= lastIndex {
			ready = append(ready, serverChange{runner.AddVoter, n.ID})
		}
	}
	if removed != 0 {
		return []serverChange{{runner.RemoveServer, removed}}
	}
	want := min(usable, maxCatalogVoters)
	want -= (want + 1) % 2
	take := min(want-voters, len(ready))
	if (voters+take)%2 == 0 {
		take--
	}
	switch {
	case take > 0:
		return ready[:take]
	case len(away) > 0 && voters > want:
		return away[:1]
	case len(away) > 0 && len(ready) > 0:
		return []serverChange{away[0], ready[0]}
	}
	return nil
}

// catalogHeir returns the voter that the catalog's leader, self, hands over to because self drains or is in maintenance: one that takes its
// part, is up, and has nearly all of the log. ok is false if self stays.
func catalogHeir(servers []raft.Server, v placement.View, self storage.NodeID, lastIndex uint64) (to raft.Server, ok bool) {
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
