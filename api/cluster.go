package api

import (
	"context"

	storage "github.com/storaged/storaged"
)

// Cluster is what a node knows of and does to its cluster. server implements it over the catalog; package apitest has
// one in memory.
//
// Methods are called concurrently, with arguments that were checked for form (names by storage.CheckVolumeName, sizes by
// storage.CheckVolumeSize) and with a context that has a deadline. Errors are storage.Error; one of KindNotLeader may
// carry a LeaderHint. Implementations return fresh structs that the caller may keep.
type Cluster interface {
	// CreateVolume makes a volume and returns it once it can be opened on every node. It is idempotent by
	// NewVolume.RequestID. KindExists: the name is taken by a volume of another request. KindUnavailable: the outcome is
	// not known, the same request may be repeated.
	CreateVolume(ctx context.Context, v NewVolume) (Volume, error)

	// Volume returns the volume of that name, with sessions and connections. KindNotFound.
	Volume(ctx context.Context, name string) (Volume, error)

	// Volumes returns, in ascending order of names, at most limit of the volumes that the filter selects and whose names are
	// greater than after (bytewise). It may leave out sessions, connections and AllocatedBytes.
	Volumes(ctx context.Context, f VolumeFilter, after string, limit int) ([]Volume, error)

	// ResizeVolume sets the size and returns the volume as it is then. KindNotFound; KindInvalid for a smaller size than
	// the volume has.
	ResizeVolume(ctx context.Context, name string, size NewSize) (Volume, error)

	// ModifyVolume changes the volume's limits and labels, also while it is in use, and returns the volume as it is then.
	// Repeating it is no error. KindInvalid when it would have too many labels: nothing is changed then. KindNotFound, also when
	// id is not 0 and the volume of that name has another.
	ModifyVolume(ctx context.Context, name string, id storage.VolumeID, change VolumeChange) (Volume, error)

	// DeleteVolume removes the volume; what it held is freed in the background. When id is not 0 and the volume of that
	// name has another, it is KindNotFound. KindConflict: the volume has sessions.
	DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error

	// VerifyVolume takes one step of the verification of a volume; it may be repeated. KindNotFound, also when s.ID is not 0 and the volume of
	// that name has another. KindUnsupported, with which node it is: a node runs a release that cannot verify.
	VerifyVolume(ctx context.Context, s VerifyStep) (Verified, error)

	// Attach gives a holder the right to use a volume. The same holder again on the same terms: the attachment it has.
	// KindNotFound; KindConflict, with who holds the volume, since when and what to do, when others are in the way or the
	// holder has it on other terms. When it returns after a takeover, nothing that former holders have sent can land any
	// more; KindUnavailable: that is not certain, the same request may be repeated.
	Attach(ctx context.Context, n NewAttachment) (Attachment, error)

	// Detach ends the attachment of a holder, alive or not. When it returns, nothing that it has sent can land any more.
	// What is not attached, or not there, is no error.
	Detach(ctx context.Context, d Detachment) error

	// Attachments returns at most limit attachments whose ids are greater than after, in ascending order. KindUnavailable when the
	// catalog's leader does not answer: what others say may be old.
	Attachments(ctx context.Context, f AttachmentFilter, after storage.AttachmentID, limit int) ([]Attachment, error)

	// Nodes returns every node that was not removed, by id.
	Nodes(ctx context.Context) ([]Node, error)

	// RemoveNode removes a node for ever that has drained or is down; what one that is down held is made again elsewhere in the
	// background. KindNotFound; KindConflict, with what to do, while the node is up and holds anything, or data would be lost. Repeating
	// it is no error.
	RemoveNode(ctx context.Context, id storage.NodeID) error

	// SetNodeIntent says what is wanted of a node. KindNotFound; KindConflict, with what to do, while that is not possible. Repeating it
	// is no error.
	SetNodeIntent(ctx context.Context, id storage.NodeID, change IntentChange) error

	// PlanNode says what an action would do to a node, and does nothing. KindNotFound; KindUnavailable while the catalog's leader does
	// not answer.
	PlanNode(ctx context.Context, id storage.NodeID, action NodeAction) (NodePlan, error)

	// Groups returns every data group, by id.
	Groups(ctx context.Context) ([]Group, error)

	// Upgrade puts a version of the cluster in force, for ever, and returns the one that is in force then. 0 is the newest that every
	// node knows. Again, or one below, is no error. KindConflict, with what to do, while a node does not know the version, or was not
	// heard; KindUnsupported: nobody knows it.
	Upgrade(ctx context.Context, version int) (inForce int, err error)

	// BackupCatalog returns a snapshot of the catalog (docs/format/catalog.md) that holds everything that was committed before it was
	// asked for. KindUnavailable while the catalog's leader does not answer.
	BackupCatalog(ctx context.Context) ([]byte, error)

	// Explain says of one object who holds it, what is not as it should be and why, what is waited for, and what comes next, in the
	// order in which it is to be read. A volume is named by its name, a node and a group by their ids in decimal. KindNotFound.
	Explain(ctx context.Context, kind ObjectKind, ref string) ([]Reason, error)

	// Events returns what has happened, as far as the node that answers knows.
	Events(ctx context.Context, f EventFilter) (Events, error)

	// Status sums the cluster up. It answers from what the node knows as long as the node runs, and says how old that is.
	Status(ctx context.Context) (Status, error)
}

// LeaderHint is implemented by an error in the chain of a storage.Error of KindNotLeader that knows who leads.
type LeaderHint interface {
	error
	// LeaderEndpoint is the host:port of the leader's API, or empty.
	LeaderEndpoint() string
}
