package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
)

// transferLag is how many entries a voter may be behind to be asked to lead whatever it keeps up with: the library sends them first.
const transferLag = 64

// ReplicaStatus is one member of a group as its leader sees it.
type ReplicaStatus struct {
	ID         raft.ServerID
	Node       storage.NodeID
	Voter      bool
	AckedIndex uint64 // highest index acknowledged durable in this term; the leader's own last index for itself
	CaughtUp   bool   // it has acknowledged all of the leader's log, or keeps up with it (rounds); only leaders know it
}

// GroupStatus is one replica's view of its group.
type GroupStatus struct {
	Group        storage.GroupID
	Self         raft.ServerID
	Role         string // leader, follower, candidate, stopped, damaged
	Reason       string // why the replica is out of service for good; empty: it serves, or soon will
	Ready        bool   // leads, and its Barrier is done
	Term         uint64
	Leader       storage.NodeID
	LastIndex    uint64
	CommitIndex  uint64
	AppliedIndex uint64
	// LeaderCommit is the highest commit index that a leader has told this replica since it was started, and LeaderHeard when
	// one last told its own; zero on a replica that has heard none.
	LeaderCommit uint64
	LeaderHeard  time.Time
	// Replicas are those of the newest configuration, which lies at ConfigIndex of the log. While CommitIndex is below that it
	// may still be lost with its leader.
	Replicas    []ReplicaStatus
	ConfigIndex uint64
	// LiveBytes is what the group's blocks take on this replica's store at least.
	LiveBytes int64
	// PulledBytes of PullTotalBytes have come of a manifest on its way here; both 0 when none is.
	PulledBytes, PullTotalBytes int64
	// PullSteps are those that pulls have made since the start: they grow while one gets on, also when it moves nothing.
	PullSteps uint64
}

// Status returns what every replica of this node sees.
func (rs *Replicas) Status() []GroupStatus {
	gs := rs.all()
	out := make([]GroupStatus, 0, len(gs))
	for _, g := range gs {
		out = append(out, g.describe())
	}
	rs.mu.RLock()
	for _, d := range rs.out {
		out = append(out, d.describe())
	}
	rs.mu.RUnlock()
	slices.SortFunc(out, func(a, b GroupStatus) int { return cmp.Compare(a.Group, b.Group) })
	return out
}

func (g *group) describe() GroupStatus {
	s := GroupStatus{Group: g.id, Self: g.self, Role: "stopped", PullTotalBytes: g.pullTotal.Load(), LiveBytes: g.extents.LiveBytes(),
		PullSteps: g.pullSteps.Load()}
	if s.PullTotalBytes > 0 {
		s.PulledBytes = g.pulled.Load()
	}
	if err := g.disk.store.Failed(); err != nil { // its Raft instance may still believe that it leads
		s.Reason = "its disk has failed: " + err.Error()
		return s
	}
	in := g.inst.Load()
	if in == nil {
		return s
	}
	state := in.State()
	switch state {
	case raft.Leader:
		s.Role = "leader"
	case raft.Candidate:
		s.Role = "candidate"
	case raft.Follower:
		s.Role = "follower"
	}
	s.Term, s.Leader = in.CurrentTerm(), in.Leader()
	s.LastIndex, s.CommitIndex, s.AppliedIndex = in.LastIndex(), in.CommitIndex(), in.AppliedIndex()
	s.Ready = state == raft.Leader && in.Ready(s.Term)
	s.LeaderCommit, s.LeaderHeard = in.transport.LeaderCommit()
	newest := in.log.newest()
	s.ConfigIndex = newest.index
	for _, m := range newest.servers {
		r := ReplicaStatus{ID: m.ID, Voter: m.Suffrage == raft.Voter}
		r.Node, _ = runner.ParseNodeAddress(m.Address)
		if m.ID == g.self {
			r.AckedIndex, r.CaughtUp = s.LastIndex, s.Role == "leader"
		} else if s.Role == "leader" {
			r.AckedIndex = in.Acked(m.ID)
			r.CaughtUp = g.caughtUp(in, m.ID)
		}
		s.Replicas = append(s.Replicas, r)
	}
	return s
}

// caughtUp reports whether a member has acknowledged in this term all of the log of the leader that asks, or keeps up with it.
func (g *group) caughtUp(in *instance, server raft.ServerID) bool {
	last := in.LastIndex() // before what was acknowledged: the log grows
	acked := in.Acked(server)
	return acked > 0 && (acked >= last || in.rounds.keepsUp(server, in.CurrentTerm(), time.Now(), g.node.cfg.HeartbeatTimeout))
}

// awaitCaughtUp waits until a replica has acknowledged what is the leader's last entry now: a round of Raft, which is to end within a
// heartbeat time-out. The newest configuration is part of it: of two learners that become voters one after the other, the
// second has still to answer the configuration that the first made a moment ago. A refusal for that leaves a group of two
// voters behind, which bears no failure.
func (rs *Replicas) awaitCaughtUp(ctx context.Context, in *instance, server raft.ServerID) bool {
	ctx, cancel := context.WithTimeout(ctx, rs.cfg.HeartbeatTimeout)
	defer cancel()
	target := max(in.LastIndex(), in.log.newest().index, 1)
	return in.AwaitAcked(ctx, server, func(acked uint64) bool { return acked >= target })
}

// ChangeMembership makes one change of a group that this node leads: replica is a ServerID. With a configIndex it is
// refused unless that is the newest configuration (GroupStatus.ConfigIndex). It returns nil only when the change is
// committed, also one that was asked for before: who removes a replica relies on it. KindUnavailable when ctx is done before: the change may
// be made all the same.
func (rs *Replicas) ChangeMembership(ctx context.Context, id storage.GroupID, change runner.Change, replica string,
	node storage.NodeID, configIndex uint64) error {
	const name = "change membership"
	server := raft.ServerID(replica)
	g, err := rs.group(id)
	if err != nil {
		return err
	}
	in, _, err := g.leading(ctx, name)
	if err != nil {
		return err
	}
	var voter, member, done bool
	for _, m := range in.Configuration().Servers {
		if m.ID == server {
			member, voter = true, m.Suffrage == raft.Voter
		}
	}
	refuse := func(kind storage.Kind, why string) error {
		return storage.E(name, kind, "group "+id.String(), errors.New(why))
	}
	switch change {
	case runner.AddNonvoter:
		done = member
	case runner.AddVoter:
		if done = voter; done {
			break
		}
		if !member {
			return refuse(storage.KindConflict, "the replica must catch up as a non-voter first")
		}
		if !rs.awaitCaughtUp(ctx, in, server) {
			return refuse(storage.KindConflict, "the replica has not caught up yet")
		}
	case runner.RemoveServer:
		if done = !member; !done && server == g.self {
			return refuse(storage.KindConflict, "a leader is not removed: transfer leadership first")
		}
	default:
		return refuse(storage.KindInvalid, fmt.Sprintf("unknown change %q", change))
	}
	if done { // in the newest configuration, which may still be lost: what follows it in the log says that it is not
		_, err = runner.Do(ctx, in.Instance, name, func(r *raft.Raft) raft.Future { return r.Barrier(runner.ChangeTimeout) })
		return err
	}
	return in.Change(ctx, name, change, server, node, configIndex)
}

// TransferLeadership asks the given replica to lead a group that this node leads.
func (rs *Replicas) TransferLeadership(ctx context.Context, id storage.GroupID, replica string, node storage.NodeID) error {
	const name = "transfer leadership"
	server := raft.ServerID(replica)
	g, err := rs.group(id)
	if err != nil {
		return err
	}
	in, _, err := g.leading(ctx, name)
	if err != nil {
		return err
	}
	if acked := in.Acked(server); (acked == 0 || acked+transferLag < in.LastIndex()) && !g.caughtUp(in, server) {
		return storage.E(name, storage.KindConflict, "group "+id.String(), errors.New("the replica has not caught up yet"))
	}
	return in.Transfer(name, server, runner.NodeAddress(node))
}
