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

	// Attach asks for the right to use the named volume, for clients that bring no attachment of their own: the gateway
	// attaches on the terms given, or has the attachment already. KindConflict, with who is in the way: others have the
	// volume. KindNotFound without such a volume. The implementation may wait for a moment before it refuses: a
	// gateway that has just been left detaches after its client has gone. Each answer is given up by a Detach of its own.
	Attach(ctx context.Context, name string, terms Terms) (Attachment, error)
	// Detach gives up what Attach has answered. closed says that nothing is on its way: every session under the
	// attachment was closed in every group and every read answered. One attempt; what it does not achieve, the
	// implementation sees to.
	Detach(ctx context.Context, a Attachment, closed bool) error

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
	Volume(ctx context.Context, name string) (VolumeInfo, error)
	// Volumes lists the volumes that can be opened, in the order of their names.
	Volumes(ctx context.Context) ([]VolumeInfo, error)
}

// OpenOptions say how a volume is opened.
type OpenOptions struct {
	// ReadOnly refuses mutations. Read-only and other handles of a volume have sessions of their own.
	ReadOnly bool
	// Shared lets other gateways use the volume at the same time, if they share it too. It goes with Attachment 0.
	Shared bool
	// Client is who a volume is attached for that is not shared: handles of two clients are attached apart, so that one excludes
	// the other. Empty: all are one. It goes with Attachment 0.
	Client string
	// Attachment is the attachment under which the volume is used; 0: the gateway attaches by itself, when the first
	// handle on these terms is opened, and detaches when the last one is closed.
	Attachment storage.AttachmentID
}

// Terms say how a gateway attaches by itself.
type Terms struct {
	ReadOnly bool
	Shared   bool
	Client   string
}

// Attachment is a gateway's own attachment.
type Attachment struct {
	ID     storage.AttachmentID
	Name   string // the volume's, by which it was attached
	Volume storage.VolumeID
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

// SessionInfo is the catalog's answer to OpenSession.
type SessionInfo struct {
	ID         storage.SessionID
	Volume     storage.VolumeID
	SizeBytes  int64
	Groups     []storage.GroupID // extent i lives in Groups[i % len(Groups)]; at least one
	Epoch      storage.Epoch
	Generation storage.Generation
	// Limits are those that the volume has at Revision, which is like that of VolumeState; 0: not known.
	Limits   storage.VolumeLimits
	Revision uint64
	// Predecessors are sessions of this volume that this gateway or earlier instances of it have left. They are
	// closed in every group before the volume is served.
	Predecessors []storage.SessionID
}

// VolumeState is what may change while a volume is open.
type VolumeState struct {
	Revision   uint64 // ascends with every change; at least 1
	SizeBytes  int64
	Epoch      storage.Epoch
	Generation storage.Generation
	Limits     storage.VolumeLimits
	Deleted    bool // the volume is deleted, or being deleted
	// Lost says in words why the attachment is gone, who has the volume now and since when; empty while it is there.
	Lost string
}

// VolumeInfo describes a volume that need not be open.
type VolumeInfo struct {
	Name      string
	ID        storage.VolumeID
	SizeBytes int64
}
