package api

import (
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
}

// VolumeChange says what of a volume is changed; what is nil stays as it is.
type VolumeChange struct {
	// MaxIOPS and MaxBytesPerSecond are as in storage.VolumeLimits; 0 is no limit.
	MaxIOPS, MaxBytesPerSecond *int64
}

// LimitsChange sets both limits.
func LimitsChange(l storage.VolumeLimits) VolumeChange {
	return VolumeChange{MaxIOPS: &l.MaxIOPS, MaxBytesPerSecond: &l.MaxBytesPerSecond}
}

// Of returns the limits l with the change.
func (c VolumeChange) Of(l storage.VolumeLimits) storage.VolumeLimits {
	if c.MaxIOPS != nil {
		l.MaxIOPS = *c.MaxIOPS
	}
	if c.MaxBytesPerSecond != nil {
		l.MaxBytesPerSecond = *c.MaxBytesPerSecond
	}
	return l
}

// Volume describes a volume.
type Volume struct {
	ID        storage.VolumeID
	Name      string
	SizeBytes int64
	// AllocatedBytes is how much of one copy holds data, in whole blocks, as the leaders of its groups count it when the
	// volume is shown; negative when it is not known. Snapshots do not count.
	AllocatedBytes int64
	// Groups is the stripe: extent i lives in Groups[i mod len(Groups)].
	Groups     []storage.GroupID
	Epoch      storage.Epoch
	Generation storage.Generation
	State      VolumeState
	CreatedAt  time.Time
	// Limits are what each gateway holds the volume's users to.
	Limits   storage.VolumeLimits
	Sessions []Session
	// Connections are the NBD clients of nodes, as of a second ago; of a node with hundreds not all are named.
	Connections []Connection
	Attachments []Attachment
}

// VolumeState says where a volume is in its life.
type VolumeState string

// The states of a volume.
const (
	// VolumeReady can be opened.
	VolumeReady VolumeState = "ready"
	// VolumeDeleting is gone for hosts; its data is being removed.
	VolumeDeleting VolumeState = "deleting"
)

// Session is a gateway's right to write to a volume.
type Session struct {
	ID storage.SessionID
	// Node is the one whose gateway holds the session.
	Node       storage.NodeID
	NodeName   string
	Generation storage.Generation
	ReadOnly   bool
	OpenedAt   time.Time
	// Attachment is the one that the session lives under.
	Attachment storage.AttachmentID
}

// Connection is one NBD client of a volume.
type Connection struct {
	Node     storage.NodeID
	NodeName string
	// Client is the client's address, or the path of the unix socket.
	Client   string
	ReadOnly bool
	OpenedAt time.Time
}
