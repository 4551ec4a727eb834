package csi

import (
	"context"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
)

// Release has the gateway take a volume's device away: by force if the device has failed and is mounted nowhere, because a
// device that nobody serves any more cannot be asked whether it is in use, and its users get errors either way. Without it a
// device that was lost with the gateway could be given up by nobody but a person. KindConflict while it is in use. It may be
// repeated.
func Release(ctx context.Context, devices Devices, mounts Mounts, volume string) error {
	force, err := spent(ctx, devices, mounts, volume)
	if err != nil {
		return err
	}
	return devices.Detach(ctx, volume, force)
}

// spent reports whether a volume's device has failed and shows nowhere.
func spent(ctx context.Context, devices Devices, mounts Mounts, volume string) (bool, error) {
	list, err := devices.Attachments(ctx)
	at := slices.IndexFunc(list, func(a host.Attachment) bool { return a.Volume == volume })
	if err != nil || at < 0 || list[at].State != host.StateFailed {
		return false, err
	}
	if list[at].Device == "" {
		return true, nil
	}
	device, err := mounts.Device(DiskOf(list[at]))
	if kind := storage.KindOf(err); kind == storage.KindNotFound || kind == storage.KindConflict { // gone, or another's by now
		return true, nil
	}
	if err != nil {
		return false, err
	}
	mounted, err := mounts.List()
	return !slices.ContainsFunc(mounted, func(m Mount) bool { return m.shows(device) }), err
}
