package control

import (
	"context"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
)

// Actions is what the reconcilers do to the world outside the catalog. Package server implements it over the peer
// methods; Orders go to the node they name.
//
// Every method may be called again with the same arguments, also while an earlier call is still at work, and must
// then end as one call would. A nil error means that it is done. Methods return soon after ctx is done.
type Actions interface {
	// CreateReplica has o.Node hold a replica: bootstrapped as the group's only voter, or pulled from o.Source.
	CreateReplica(ctx context.Context, o CreateOrder) error
	// DropReplica has a node delete a replica that has left its group. A replica it does not hold is no error.
	DropReplica(ctx context.Context, o ReplicaOrder) error
	// ChangeMembership has o.Leader, which must lead the group, change its configuration by one server.
	ChangeMembership(ctx context.Context, o MembershipOrder) error
	// TransferLeader has o.Leader hand the group's leadership to the replica o.Key on o.Node.
	TransferLeader(ctx context.Context, o TransferOrder) error
	// CloseSession has the group's leader close a session by an entry of its log.
	CloseSession(ctx context.Context, group storage.GroupID, volume storage.VolumeID, session storage.SessionID) error
	// SetGeneration has the group's leader refuse every generation of a volume below this one from now on, by an entry of
	// its log. A group that refuses it already, or has deleted the volume, is no error. at is the index of a catalog in which
	// the volume was there and not being deleted.
	SetGeneration(ctx context.Context, group storage.GroupID, volume storage.VolumeID, generation storage.Generation, at uint64) error
	// DeleteVolume has the group's leader delete the group's part of a volume by an entry of its log. at is the index of a
	// catalog in which the volume was being deleted.
	DeleteVolume(ctx context.Context, group storage.GroupID, volume storage.VolumeID, at uint64) error
	// ForgetDeleted has the group's leader, by an entry of its log, forget the volumes that the group has deleted. The
	// command covers deletions up to index at of the catalog; session is the last one that the catalog had given out at
	// that index.
	ForgetDeleted(ctx context.Context, group storage.GroupID, session storage.SessionID, at uint64) error
}

// ReplicaOrder names a replica and the node that holds it, or is to.
type ReplicaOrder struct {
	Group storage.GroupID    `json:"group"`
	Node  storage.NodeID     `json:"node"`
	Key   storage.ReplicaKey `json:"key"`
}

// CreateOrder asks for a replica.
type CreateOrder struct {
	ReplicaOrder
	// Bootstrap makes the group's first replica. It is only ever asked for a group that holds no data.
	Bootstrap bool `json:"bootstrap,omitempty"`
	// Source is the node to pull from otherwise: the group's leader.
	Source storage.NodeID `json:"source,omitempty"`
}

// MembershipOrder asks a group's leader for a change of its configuration.
type MembershipOrder struct {
	ReplicaOrder
	Leader storage.NodeID `json:"leader"`
	Change runner.Change  `json:"change"`
	// ConfigIndex is the configuration the change was decided on; the leader refuses it for a later one. 0: any.
	ConfigIndex uint64 `json:"config_index,omitempty"`
}

// TransferOrder asks a group's leader to let another replica lead.
type TransferOrder struct {
	ReplicaOrder
	Leader storage.NodeID `json:"leader"`
}
