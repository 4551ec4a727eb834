package volume

import (
	"context"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// Cluster is what a gateway needs of the cluster. Every call is a single attempt: the gateway repeats what fails
// with KindUnavailable or KindNotLeader; the implementation remembers hints about leaders for the next attempt. Each
// call returns soon after its context has ended. Implementations may be called concurrently.
type Cluster interface {
	// Propose asks the leader of group to apply the operation encoded in data (header, then payload). A nil error
	// says that the result is final. Neither data nor what it refers to is used after Propose has returned, also
	// not when it returned because its context ended.
	Propose(ctx context.Context, group storage.GroupID, data [][]byte) (op.Result, error)
	// Read asks the leader of group. The caller releases the answer.
	Read(ctx context.Context, group storage.GroupID, req op.ReadRequest) (*op.ReadData, error)
	// Status asks the leader of group. The runs cover exactly the range asked for.
	Status(ctx context.Context, group storage.GroupID, req op.StatusRequest) ([]op.Run, error)
	// MappedExtents asks the leader of group which extents of a range hold anything.
	MappedExtents(ctx context.Context, group storage.GroupID, req op.MappedRequest) (op.MappedResponse, error)

	// Attach asks for the right to use the named volume, for clients that bring no attachment of their own. The options name an
	// access mode and no attachment; the gateway attaches with that access mode, or has the attachment already. KindConflict, with
	// who is in the way: others have the volume. KindNotFound without such a volume. The implementation may wait for a moment
	// before it refuses, because a gateway detaches only after its client has gone. Each answer is given up by a Detach of its own.
	Attach(ctx context.Context, name string, options OpenOptions) (storage.Attachment, error)
	// Detach gives up what Attach has answered for the name. closed says that nothing is on its way: every session under the
	// attachment was closed in every group and every read answered. It is one attempt; if it fails, the implementation finishes the
	// rest.
	Detach(ctx context.Context, name string, a storage.Attachment, closed bool) error

	// OpenSession asks the catalog for a session of the named volume with an id above request.After: a new one, or
	// the one whose answer to the same request was lost. KindNotFound without such a volume; KindFenced, with who has
	// the volume, when the attachment has ended. The implementation keeps the session alive (heartbeats) until
	// CloseSession.
	OpenSession(ctx context.Context, name string, request SessionRequest) (SessionInfo, error)
	// CloseSession tells the catalog that a session was closed in every group of its volume. Closing a session that
	// the catalog does not know is not an error.
	CloseSession(ctx context.Context, session storage.SessionID) error
	// WatchVolume returns the state of a volume, as the holder of an attachment sees it, once its revision is above
	// after; with after 0, at once.
	WatchVolume(ctx context.Context, volume storage.VolumeID, attachment storage.AttachmentID, after uint64) (VolumeState, error)
	// Volume describes the named volume without opening it: KindNotFound without such a volume.
	Volume(ctx context.Context, name string) (storage.Volume, error)
	// Volumes lists the volumes that can be opened, in the order of their names.
	Volumes(ctx context.Context) ([]storage.Volume, error)
}

// OpenOptions say how a volume is opened.
type OpenOptions struct {
	// ReadOnly refuses mutations. Read-only and other handles of a volume have sessions of their own.
	ReadOnly bool
	// Access says who else may use the volume at the same time; empty is AccessExclusive. AccessReaders implies ReadOnly. It goes with
	// Attachment 0.
	Access storage.Access
	// Client is who a volume is attached for exclusively: handles of two clients are attached apart, so that one excludes
	// the other. Empty: all are one. It goes with Attachment 0.
	Client string
	// Attachment is the attachment under which the volume is used; With 0 the gateway attaches by itself when the first handle with
	// these options is opened, and detaches when the last one is closed.
	Attachment storage.AttachmentID
}

// SessionRequest asks for a session.
type SessionRequest struct {
	ReadOnly bool
	// Attachment is what the session is opened under; it ends with it.
	Attachment storage.AttachmentID
	// After is the highest id that this gateway was given before, for whichever volume. A session at or below it may
	// have been used: taking its id once more would make new requests look like duplicates.
	After storage.SessionID
}

// SessionInfo is the catalog's answer to OpenSession. It travels to hosts as JSON (docs/format/peer.md).
type SessionInfo struct {
	ID         storage.SessionID  `json:"session"`
	Volume     storage.VolumeID   `json:"volume"`
	SizeBytes  int64              `json:"size_bytes"`
	Groups     []storage.GroupID  `json:"groups"` // extent i lives in Groups[i % len(Groups)]; at least one
	Epoch      storage.Epoch      `json:"epoch,omitempty"`
	Generation storage.Generation `json:"generation"`
	// Limits are those that the volume has at Revision, which is like that of VolumeState; 0: not known.
	Limits   storage.VolumeLimits `json:"limits,omitzero"`
	Revision uint64               `json:"revision,omitempty"`
	// Predecessors are sessions of this volume that this gateway or earlier instances of it have left. They are
	// closed in every group before the volume is served.
	Predecessors []storage.SessionID `json:"predecessors,omitempty"`
}

// VolumeState is what may change while a volume is open. It travels to hosts as JSON, too.
type VolumeState struct {
	Revision   uint64               `json:"revision"` // ascends with every change; at least 1
	SizeBytes  int64                `json:"size_bytes"`
	Epoch      storage.Epoch        `json:"epoch,omitempty"`
	Generation storage.Generation   `json:"generation"`
	Limits     storage.VolumeLimits `json:"limits,omitzero"`
	Deleted    bool                 `json:"deleted,omitempty"` // the volume is deleted, or being deleted
	// Lost says in words why the attachment is gone, who has the volume now and since when; empty while it is there.
	Lost string `json:"lost,omitempty"`
}
