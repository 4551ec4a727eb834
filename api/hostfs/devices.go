package hostfs

import (
	"context"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
)

// Devices is what is asked of the host's gateway; api/hostclient implements it. See host.Gateway for what the methods promise.
type Devices interface {
	Attach(ctx context.Context, request host.Request) (host.Attachment, error)
	Detach(ctx context.Context, volume string, force bool) error
	Refresh(ctx context.Context, volume string, sizeBytes int64) (host.Attachment, error)
	Allocated(ctx context.Context, volume string, attachmentID storage.AttachmentID) (bool, error)
	Attachments(ctx context.Context) ([]host.Attachment, error)
	Info(ctx context.Context) (host.Info, error)
}

var _ Devices = host.Gateway(nil)

// Release has the gateway remove a volume's device. It does so by force if the device has failed and is mounted nowhere: a
// device that nobody serves cannot be asked whether it is in use, and its users get errors either way. Without it a device that
// was lost with the gateway could be given up by nobody but a person. KindConflict while it is in use. It may be repeated.
//
// It waits for work that still goes on at the device, for example a mkfs whose caller has left. It does not wait for a failed
// device: only its removal ends such work.
func Release(ctx context.Context, devices Devices, mounts Mounts, volume string) error {
	a, attached, err := AttachmentOf(ctx, devices, volume)
	if err != nil {
		return err
	}
	force := false
	if attached {
		if force, err = Spent(ctx, mounts, a); err == nil && !force && a.Device != "" {
			err = mounts.Settle(ctx, DiskOf(a))
		}
		if err != nil {
			return err
		}
	}
	return devices.Detach(ctx, volume, force)
}

// AttachmentOf returns the volume's attachment at the host's gateway, if it has one.
func AttachmentOf(ctx context.Context, devices Devices, volume string) (a host.Attachment, ok bool, err error) {
	list, err := devices.Attachments(ctx)
	if at := slices.IndexFunc(list, func(a host.Attachment) bool { return a.Volume == volume }); err == nil && at >= 0 {
		return list[at], true, nil
	}
	return a, false, err
}

// Spent reports whether a device has failed and shows nowhere.
func Spent(ctx context.Context, mounts Mounts, a host.Attachment) (bool, error) {
	if a.State != host.StateFailed {
		return false, nil
	}
	if a.Device == "" {
		return true, nil
	}
	device, err := mounts.Device(ctx, DiskOf(a))
	if kind := storage.KindOf(err); kind == storage.KindNotFound || kind == storage.KindConflict { // gone, or another's by now
		return true, nil
	}
	if err != nil {
		return false, err
	}
	mounted, err := mounts.List()
	return !slices.ContainsFunc(mounted, func(m Mount) bool { return m.Shows(device) }), err
}
