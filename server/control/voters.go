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
// before, and is then taken in as a follower again. So a newcomer that fails does not stop the others.
func catalogChanges(servers []raft.Server, v placement.View, configIndex, lastIndex uint64) []serverChange {
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
		usable++
		if suffrage == raft.Voter && n.State == storage.NodeDown && v.Away[n.ID] {
			away = append(away, serverChange{runner.RemoveServer, n.ID})
		}
		report, heard := v.Reports[n.ID]
		if suffrage != raft.Voter && heard && n.State == storage.NodeUp && report.CatalogIndex >= max(configIndex, 1) &&
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
