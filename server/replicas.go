package server

import (
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/server/placement"
	"github.com/storaged/storaged/server/status"
)

// replicaReports describes this node's replicas, in the words of reports.
func (n *node) replicaReports() (out []status.Replica) {
	for _, s := range n.replicas.Status() {
		key, err := storage.ParseReplicaKey(string(s.Self))
		if err != nil {
			continue
		}
		out = append(out, status.Replica{ReplicaReport: reportOf(key, s), PullSteps: s.PullSteps, Leads: s.Role == "leader" && s.Ready,
			LeaderCommit: s.LeaderCommit, LeaderHeard: s.LeaderHeard})
	}
	return out
}

func reportOf(key storage.ReplicaKey, s replication.GroupStatus) placement.ReplicaReport {
	state, ok := map[string]placement.ReplicaState{"leader": placement.ReplicaLeader, "follower": placement.ReplicaFollower,
		"candidate": placement.ReplicaCandidate, "damaged": placement.ReplicaDamaged}[s.Role]
	switch {
	case s.PullTotalBytes > 0 && s.Reason == "":
		state = placement.ReplicaPulling
	case !ok:
		state = placement.ReplicaStopped
	}
	r := placement.ReplicaReport{Group: s.Group, Key: key, Term: s.Term, Leader: s.Leader, Last: s.LastIndex,
		Commit: s.CommitIndex, Applied: s.AppliedIndex, ConfigIndex: s.ConfigIndex, PulledBytes: s.PulledBytes, PullBytes: s.PullTotalBytes, LiveBytes: s.LiveBytes,
		State: state, Reason: s.Reason}
	for _, m := range s.Replicas {
		k, err := storage.ParseReplicaKey(string(m.ID))
		if err != nil {
			continue
		}
		r.Members = append(r.Members, placement.Member{Key: k, Node: m.Node, Voter: m.Voter, AckedIndex: m.AckedIndex, CaughtUp: m.CaughtUp})
	}
	return r
}
