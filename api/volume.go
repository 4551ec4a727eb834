package api

import (
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
)

// NewVolume asks for a volume.
type NewVolume struct {
	// RequestID makes a repeated request the same request; at most MaxRequestIDBytes of printable ASCII. Empty: a repeat
	// is KindExists.
	RequestID string
	Name      string
	SizeBytes int64
	// Groups is the number of groups to stripe over, a power of two; 0 lets the cluster choose.
	Groups int
	Limits storage.VolumeLimits
	Labels map[string]string
	// Overcommit makes the volume although the stores could not hold it full, or all volumes together are beyond the provisioning
	// limit. Otherwise it is KindInvalid in the first case, and KindNoSpace in the second.
	Overcommit bool
}

// NewSize asks for another size of a volume.
type NewSize struct {
	Bytes int64
	// Overcommit is as in NewVolume.
	Overcommit bool
}

// VolumeChange says what of a volume is changed; the rest stays as it is.
type VolumeChange struct {
	Limits storage.LimitsChange
	Labels storage.LabelChange
}

// VolumeFilter selects volumes; empty fields select all.
type VolumeFilter struct {
	Labels storage.LabelSelector
}

// Volume is a volume with what is seen of it.
type Volume struct {
	storage.Volume
	// AllocatedBytes is how much of one copy holds data, in whole blocks, as the leaders of its groups count it when the
	// volume is shown; negative when it is not known. Snapshots do not count.
	AllocatedBytes int64
	// OnDiskBytes is AllocatedBytes of all copies together: of each group as many as it has replicas, those that are being pulled not
	// counted. What was overwritten and is garbage belongs to no volume and is not in it. Negative when it is not known.
	OnDiskBytes int64
	Sessions    []Session
	// Connections are the NBD clients of nodes, as of a second ago; of a node with hundreds not all are named.
	Connections []Connection
	Attachments []Attachment
}

// Session is a gateway's right to write to a volume. storagectl prints it to programs as it stands.
type Session struct {
	ID storage.SessionID `json:"id"`
	// Node is the one whose gateway holds the session.
	Node       storage.NodeID     `json:"node"`
	NodeName   string             `json:"node_name"`
	Generation storage.Generation `json:"generation"`
	ReadOnly   bool               `json:"read_only"`
	OpenedAt   time.Time          `json:"opened_at,omitzero"`
	// Attachment is the one that the session lives under.
	Attachment storage.AttachmentID `json:"-"`
}

// Connection is one NBD client of a volume. storagectl prints it to programs as it stands.
type Connection struct {
	Node     storage.NodeID `json:"node"`
	NodeName string         `json:"node_name"`
	// Client is the client's address, or the path of the unix socket.
	Client   string    `json:"client"`
	ReadOnly bool      `json:"read_only"`
	OpenedAt time.Time `json:"opened_at,omitzero"`
}

// Before returns an error when this volume is older than the one with that id, which got its name later. Ids ascend, so whoever
// gave this answer has an old copy of the catalog, and knows nothing of the newer volume. KindUnavailable; nil also for an id of
// 0.
func (v Volume) Before(op string, id storage.VolumeID) error {
	if v.ID >= id {
		return nil
	}
	return storage.E(op, storage.KindUnavailable, "volume "+v.Name, fmt.Errorf("the node that answers knows the volume that had the name before (%s) and not "+
		"this one (%s): its copy of the catalog is old; ask again", v.ID, id))
}
