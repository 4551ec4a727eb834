package server

import (
	"fmt"

	"github.com/storaged/storaged/internal/version"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/export"
	"github.com/storaged/storaged/server/placement"
)

// report is what this node tells the catalog's leader about itself every second.
func (n *node) report() placement.NodeReport {
	space := n.store.Space()
	used := max(0, space.CapacityBytes-space.FreeBytes)
	store := placement.StoreReport{ID: catalog.StoreText(n.store.ID()), CapacityBytes: space.CapacityBytes, UsedBytes: used,
		FreeBytes: max(0, space.FreeBytes-space.ReserveBytes)}
	if err := n.store.Failed(); err != nil {
		store.Failed = err.Error()
	}
	r := placement.NodeReport{Node: n.identity.Node, Version: version.Version, Stores: []placement.StoreReport{store},
		Sessions: append(n.cluster.liveSessions(), n.remote.Sessions()...)}
	if exports := n.exports.Load(); exports != nil {
		r.Connections = connectionReports(exports.Connections())
	}
	for _, s := range n.host.Status() {
		if rep, ok := replicaReport(s); ok {
			r.Replicas = append(r.Replicas, rep)
		}
	}
	r.Unready = unreadyLines(n.unready())
	return r
}

// unreadyLines puts problems into a report: the first of them, and how many more there are.
func unreadyLines(problems []problem) (out []string) {
	for i, p := range problems {
		if i == placement.MaxUnready-1 && len(problems) > placement.MaxUnready {
			return append(out, fmt.Sprintf("and %d more", len(problems)-i))
		}
		out = append(out, p.Subject+": "+p.Text)
	}
	return out
}

// connectionReports turns what is connected into what is reported of it.
func connectionReports(list []export.Connection) (out []placement.Connection) {
	for _, c := range list[:min(len(list), placement.MaxConnections)] {
		out = append(out, placement.Connection{Volume: c.Volume, Client: c.Client, ReadOnly: c.ReadOnly, Since: c.Since.UTC()})
	}
	return out
}

func replicaReport(s replication.GroupStatus) (placement.ReplicaReport, bool) {
	key, err := catalog.ParseReplicaKey(string(s.Self))
	if err != nil {
		return placement.ReplicaReport{}, false
	}
	state, ok := map[string]placement.ReplicaState{"leader": placement.ReplicaLeader, "follower": placement.ReplicaFollower,
		"candidate": placement.ReplicaCandidate, "damaged": placement.ReplicaDamaged}[s.Role]
	switch {
	case s.PullTotalBytes > 0 && s.Reason == "":
		state = placement.ReplicaPulling
	case !ok:
		state = placement.ReplicaStopped
	}
	r := placement.ReplicaReport{Group: s.Group, Key: key, Term: s.Term, Leader: s.Leader, Last: s.LastIndex,
		Commit: s.CommitIndex, Applied: s.AppliedIndex, ConfigIndex: s.ConfigIndex, PulledBytes: s.PulledBytes, PullBytes: s.PullTotalBytes,
		State: state, Reason: s.Reason}
	for _, m := range s.Replicas {
		k, err := catalog.ParseReplicaKey(string(m.ID))
		if err != nil {
			continue
		}
		r.Members = append(r.Members, placement.Member{Key: k, Node: m.Node, Voter: m.Voter, AckedIndex: m.AckedIndex})
	}
	return r, true
}
