package status

import (
	"fmt"

	"github.com/storaged/storaged/internal/version"
	"github.com/storaged/storaged/server/placement"
)

// Report is what this node tells the catalog's leader about itself every second.
func (v *View) Report() placement.NodeReport {
	r := placement.NodeReport{Node: v.Self, Version: version.Version, Stores: []placement.StoreReport{v.Store()}, Sessions: v.Sessions(),
		Connections: reported(v.Connections()), Unready: unreadyLines(v.Unready()), Refusing: v.Refusals()}
	r.PullSteps = new(uint64)
	for _, s := range v.Replicas() {
		r.Replicas = append(r.Replicas, s.ReplicaReport)
		*r.PullSteps += s.PullSteps
	}
	return r
}

// reported are the clients that a report has room for.
func reported(all []placement.Connection) []placement.Connection {
	return all[:min(len(all), placement.MaxConnections)]
}

// unreadyLines puts problems into a report: the first of them, and how many more there are.
func unreadyLines(problems []Problem) (out []string) {
	for i, p := range problems {
		if i == placement.MaxUnready-1 && len(problems) > placement.MaxUnready {
			return append(out, fmt.Sprintf("and %d more", len(problems)-i))
		}
		out = append(out, p.Subject+": "+p.Text)
	}
	return out
}
