package api

import (
	"time"

	storage "github.com/storaged/storaged"
)

// Group describes a data group.
type Group struct {
	ID storage.GroupID
	// Leader is the node that leads; 0 when nobody does.
	Leader     storage.NodeID
	LeaderName string
	Term       uint64
	// CommitIndex is the leader's; AppliedIndex <= CommitIndex.
	CommitIndex  uint64
	AppliedIndex uint64
	Replicas     []Replica
}

// Replica describes one member of a group, or one that is on its way to become one.
type Replica struct {
	Node        storage.NodeID
	NodeName    string
	Store       storage.StoreID
	Incarnation storage.Incarnation
	Role        ReplicaRole
	// Online: the leader hears from it.
	Online bool
	// Reason says in words why it is out of service for good; empty when it is not.
	Reason string
	// LagEntries counts the entries that the leader has committed and this replica does not hold yet.
	LagEntries uint64
	// Progress is set for a replica that pulls or learns.
	Progress *Progress
}

// ReplicaRole says what a replica does in its group.
type ReplicaRole string

// The roles of a replica.
const (
	RoleVoter ReplicaRole = "voter"
	// RoleLearner receives the log and does not vote yet.
	RoleLearner ReplicaRole = "learner"
	// RolePulling fetches what the group holds, before it joins.
	RolePulling ReplicaRole = "pulling"
	// RoleLeaving is about to be removed.
	RoleLeaving ReplicaRole = "leaving"
)

// Progress says how far a transfer is: 0 <= DoneBytes <= TotalBytes once the total is known.
type Progress struct {
	DoneBytes int64
	// TotalBytes is 0 while it is not known.
	TotalBytes int64
	StartedAt  time.Time
}
