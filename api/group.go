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

// Replica is a member of a group, or one that is on its way to become one, with what is seen of it.
type Replica struct {
	storage.Replica
	NodeName string
	// Online: the leader hears from it.
	Online bool
	// Reason says in words why it is out of service for good; empty when it is not.
	Reason string
	// LagEntries counts the entries that the leader has committed and this replica does not hold yet.
	LagEntries uint64
	// Progress is set for a replica that pulls or learns.
	Progress *Progress
}

// Progress says how far a transfer is: 0 <= DoneBytes <= TotalBytes once the total is known. storagectl prints it to programs as it
// stands.
type Progress struct {
	DoneBytes int64 `json:"done_bytes"`
	// TotalBytes is 0 while it is not known.
	TotalBytes int64     `json:"total_bytes,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"`
}
