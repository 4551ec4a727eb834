package host

import (
	"context"
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
)

// DefaultSocket is where the gateway of a host listens.
const DefaultSocket = "/run/storaged/gateway.sock"

// Gateway attaches volumes to a host as block devices. Errors are *storage.Error. Its methods may be called concurrently;
// calls about one volume are carried out one after another.
type Gateway interface {
	// Attach makes a volume a block device of this host and returns when the device can be used. Repeated with equal
	// terms it returns the device that is there; with others it is KindConflict. KindConflict too when somebody else has
	// the volume: the text says who, since when, and how to take it over. KindNotFound without such a volume;
	// KindUnsupported when this host cannot make such a device.
	Attach(ctx context.Context, request Request) (Attachment, error)
	// Detach removes the volume's device and gives the volume up. While the device is in use it is KindConflict, unless
	// force is set: then its users get errors. A volume that is not attached here is no error.
	Detach(ctx context.Context, volume string, force bool) error
	// Refresh asks the cluster how large the volume is now, and returns when the device has at least sizeBytes; 0: as
	// many as the volume has. KindNotFound if the volume is not attached here.
	Refresh(ctx context.Context, volume string, sizeBytes int64) (Attachment, error)
	// Allocated asks the cluster whether the volume that is attached here holds anything: whether one of its blocks was
	// written and not discarded since, zeroes too. The answer includes every write that was acknowledged before. Every error
	// means that it is not known. KindNotFound if the volume is not attached here, or under another attachment than that of
	// the id (0: any).
	Allocated(ctx context.Context, volume string, attachmentID storage.AttachmentID) (bool, error)
	// HostDown says that the host goes down, and that nobody will serve its devices before it is started again. From now on
	// a device answers errors when the cluster has not answered its requests for a while. When the gateway is stopped, it
	// removes its devices instead of leaving them to the next gateway. What is attached is attached again when the host has
	// started. It returns at once, and may be repeated.
	HostDown(ctx context.Context) error
	// Attachments returns what is attached here, by volume.
	Attachments(ctx context.Context) ([]Attachment, error)
	// Info describes the gateway and its host.
	Info(ctx context.Context) (Info, error)
}

// Request asks for a volume as a block device. Equal terms are equal values of all fields but TakeOver, where
// ViaAuto equals any Via and AttachmentID 0 any id.
type Request struct {
	Volume string
	// Access is AccessExclusive unless it is said.
	Access   storage.Access
	ReadOnly bool
	// TakeOver takes the volume from whoever has it: nothing that others have in flight lands afterwards.
	TakeOver bool
	// Via is ViaAuto unless it is said.
	Via Via
	// AttachmentID is the catalog's attachment under which the volume is used, if it was made for this host before; such a
	// one outlives Detach. With 0 the gateway makes one, and Detach removes it.
	AttachmentID storage.AttachmentID
}

// Validate returns what is wrong with the request (KindInvalid); it fills in the defaults.
func (r *Request) Validate() error {
	if err := storage.CheckVolumeName(r.Volume); err != nil {
		return err
	}
	if r.Access == "" {
		r.Access = storage.AccessExclusive
	}
	if r.Via == "" {
		r.Via = ViaAuto
	}
	r.ReadOnly = r.ReadOnly || r.Access == storage.AccessReaders
	var why error
	switch {
	case !r.Access.Valid():
		why = fmt.Errorf("access %q: use exclusive, shared or readers", r.Access)
	case r.Via != ViaAuto && r.Via != ViaNBD && r.Via != ViaFUSE:
		why = fmt.Errorf("via %q: use auto, nbd or fuse", r.Via)
	case r.TakeOver && r.AttachmentID != 0:
		why = fmt.Errorf("an attachment that was made before cannot take the volume over once more")
	}
	if why != nil {
		return storage.E("attach", storage.KindInvalid, "volume "+r.Volume, why)
	}
	return nil
}

// Via says what makes the block device.
type Via string

// The values of Via.
const (
	// ViaAuto is ViaNBD where the kernel has it, ViaFUSE elsewhere.
	ViaAuto Via = "auto"
	// ViaNBD is the kernel's network block device, over a unix socket.
	ViaNBD Via = "nbd"
	// ViaFUSE is a loop device over a file of a FUSE file system.
	ViaFUSE Via = "fuse"
)

// State says where an attachment is in its life.
type State string

// The states of an attachment.
const (
	// StateConnecting: the device is being made, or found again after a start of the gateway; its requests wait.
	StateConnecting State = "connecting"
	// StateReady: the device serves requests.
	StateReady State = "ready"
	// StateDetaching: the device is being removed, or has been, and the cluster was not told yet that the volume is free.
	StateDetaching State = "detaching"
	// StateFailed: every request is answered with an error, for good. Detach removes the device.
	StateFailed State = "failed"
)

// Attachment is a volume as a block device of this host. storagectl prints it to programs as it stands.
type Attachment struct {
	Volume   string           `json:"volume"`
	VolumeID storage.VolumeID `json:"volume_id"`
	// Device is the path of the block device: /dev/nbd0, /dev/loop3. Link is a path that leads to it for as long as the
	// volume is attached, whatever device it is; empty without one.
	Device   string         `json:"device"`
	Link     string         `json:"link,omitempty"`
	Via      Via            `json:"via"` // never ViaAuto
	Access   storage.Access `json:"access"`
	ReadOnly bool           `json:"read_only"`
	// Identity tells the device from another that has got its path since: whoever formats, mounts or shows it opens it by
	// blockdev.OpenOwned(Device, Identity, ...) and keeps it open meanwhile. Zero without a device, and from gateways that do
	// not say it.
	Identity  blockdev.Identity `json:"-"`
	SizeBytes int64             `json:"size_bytes"` // of the device
	State     State             `json:"state"`
	// Reason says why State is what it is; empty when it is StateReady.
	Reason string `json:"reason,omitempty"`
	// ID is the catalog's; 0 in a cluster that keeps none.
	ID         storage.AttachmentID `json:"attachment_id,omitempty"`
	Generation storage.Generation   `json:"generation"`
	Since      time.Time            `json:"since,omitzero"`
}

// ItsDevice names the device in a message: "its device /dev/nbd0", or "its device" where that has no path.
func (a Attachment) ItsDevice() string {
	if a.Device == "" {
		return "its device"
	}
	return "its device " + a.Device
}

// Info describes a gateway and its host.
type Info struct {
	// HostID is what the cluster knows this host as: the holder of its attachments, the node id of the CSI driver.
	HostID  string
	Zone    string
	Version string
	// Endpoints are those of the cluster's API.
	Endpoints []string
	// Vias are what Attach can use here, the one that ViaAuto stands for first.
	Vias []Via
	// Cluster is zero while the cluster was not reached yet.
	Cluster storage.ClusterID
}
