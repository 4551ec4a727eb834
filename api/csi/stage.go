package csi

import (
	"context"
	"errors"
	"slices"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostfs"
)

// NodeStageVolume implements the CSI Node service: it attaches the volume to this host. Unless the volume is used raw, it also
// makes a file system on it if it is blank, and mounts it at the staging path.
func (n *Node) NodeStageVolume(ctx context.Context, r *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	if r.GetVolumeCapability() == nil {
		return nil, invalid("volume_capability is missing")
	}
	u, err := parseUse(r.GetVolumeCapability())
	if err != nil {
		return nil, invalid("volume_capability: %v", err)
	}
	ref, unlock, err := n.begin(r.GetVolumeId(), "staging_target_path", r.GetStagingTargetPath(), "NodeStageVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	request, err := parsePublishContext(r.GetPublishContext())
	if err != nil {
		return nil, err
	}
	request.Volume = ref.Name
	if request.Access == storage.AccessExclusive && u.shared {
		return nil, invalid("the volume was published for one host, and is to be staged for several")
	}
	d, err := n.attach(ctx, ref, request)
	if err != nil {
		return nil, err
	}
	if !u.block {
		u.readOnly = u.readOnly || request.ReadOnly
		err := n.mountStaged(ctx, d, u, r.GetStagingTargetPath())
		switch {
		case errors.Is(err, hostfs.ErrPending): // the next call finds it, or NodeUnstageVolume undoes it
			return nil, err
		case err != nil:
			return nil, errors.Join(err, n.unstage(ctx, d))
		}
	}
	return &spec.NodeStageVolumeResponse{}, nil
}

// attach makes the volume a device of this host, or changes nothing. It gives up what it has attached and cannot use, but not
// what was attached before: somebody may use that.
func (n *Node) attach(ctx context.Context, ref storage.VolumeRef, request host.Request) (device, error) {
	before, was, err := hostfs.AttachmentOf(ctx, n.devices, ref.Name)
	if err != nil {
		return device{}, err
	}
	a, err := n.attachDevice(ctx, ref, request)
	if err != nil {
		return device{}, err
	}
	d, err := n.usable(ctx, ref, a)
	if err != nil && !errors.Is(err, hostfs.ErrPending) && !(was && before.ID == a.ID) {
		err = errors.Join(err, n.unstage(ctx, device{Attachment: a}))
	}
	return d, err
}

// usable returns the device of an attachment if it is the volume's and serves.
func (n *Node) usable(ctx context.Context, ref storage.VolumeRef, a host.Attachment) (device, error) {
	if a.State != host.StateReady {
		return device{}, refuse(codes.FailedPrecondition, "volume %s: %s on this host is %s: %s", ref.Name, a.ItsDevice(), a.State, a.Reason)
	}
	if ref.ID != 0 && a.VolumeID != ref.ID {
		return device{}, noVolume(volumeID(ref, storage.ClusterID{}))
	}
	b, err := n.mounts.Device(ctx, hostfs.DiskOf(a))
	return device{Attachment: a, BlockDevice: b}, err
}

// attachDevice has the gateway attach the volume. A device that is left over from an attachment which was ended, and that nobody
// uses, gives way.
func (n *Node) attachDevice(ctx context.Context, ref storage.VolumeRef, request host.Request) (host.Attachment, error) {
	a, err := n.devices.Attach(ctx, request)
	if errors.Is(err, storage.ErrConflict) || err == nil && a.State == host.StateFailed {
		cleared, clearErr := n.clear(ctx, ref)
		if clearErr != nil {
			return a, clearErr
		}
		if cleared {
			return n.devices.Attach(ctx, request)
		}
	}
	return a, err
}

// clear detaches the volume if its device has failed and shows nowhere, and reports whether it did.
func (n *Node) clear(ctx context.Context, ref storage.VolumeRef) (bool, error) {
	a, attached, err := hostfs.AttachmentOf(ctx, n.devices, ref.Name)
	if err != nil || !attached {
		return false, err
	}
	if gone, err := hostfs.Spent(ctx, n.mounts, a); err != nil || !gone {
		return false, err
	}
	return true, n.devices.Detach(ctx, ref.Name, true)
}

// mountStaged mounts the device at the staging path, unless it is there.
func (n *Node) mountStaged(ctx context.Context, d device, u use, path string) error {
	list, err := n.mounts.List()
	if err != nil {
		return err
	}
	m, there := hostfs.MountAt(list, n.mounts.Real(path))
	switch {
	case there && m.Device != d.Number:
		return refuse(codes.FailedPrecondition, "something else is mounted at %s; unmount it", path)
	case there && (u.fsType != "" && m.FSType != u.fsType || m.ReadOnly != u.readOnly):
		return refuse(codes.AlreadyExists, "volume %s is staged already, as %s (read-only: %t)", d.Volume, m.FSType, m.ReadOnly)
	case !there:
		fsType, err := n.mounts.Format(ctx, hostfs.DiskOf(d.Attachment), u.fsType, u.readOnly, hostfs.AllocationOf(n.devices, d.Attachment))
		if err != nil {
			return err
		}
		options := slices.Clone(u.flags)
		if u.readOnly && !slices.Contains(options, "ro") {
			options = append(options, "ro")
		}
		if err := n.mounts.Mount(ctx, hostfs.DiskOf(d.Attachment), path, fsType, options); err != nil {
			return err
		}
	}
	if u.readOnly {
		return nil
	}
	// It may have grown while it was not attached. What cannot grow can be used as it is: the pod must start.
	err = n.grow(ctx, d)
	if errors.Is(err, hostfs.ErrPending) {
		return err
	}
	if err != nil {
		n.log.Warn("the file system is mounted smaller than its volume: it could not grow", "volume", d.Volume, "path", path, "error", err)
	}
	return nil
}

// unstage detaches what a failed NodeStageVolume has attached, unless it is mounted or shown. After a final error the
// orchestrator assumes that nothing was done, and does not ask to undo anything.
func (n *Node) unstage(ctx context.Context, d device) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	list, err := n.mounts.List()
	if err != nil || slices.ContainsFunc(list, func(m hostfs.Mount) bool { return m.Shows(d.BlockDevice) }) {
		return err
	}
	return hostfs.Release(ctx, n.devices, n.mounts, d.Volume)
}

// undoTime is how long a call that has failed may take to undo what it did.
const undoTime = 20 * time.Second

// NodeUnstageVolume implements the CSI Node service: it unmounts the volume from the staging path and gives the device up.
func (n *Node) NodeUnstageVolume(ctx context.Context, r *spec.NodeUnstageVolumeRequest) (*spec.NodeUnstageVolumeResponse, error) {
	ref, unlock, err := n.begin(r.GetVolumeId(), "staging_target_path", r.GetStagingTargetPath(), "NodeUnstageVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.mounts.Unmount(ctx, r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	_, ok, err := n.find(ctx, ref)
	if err == nil && ok {
		err = hostfs.Release(ctx, n.devices, n.mounts, ref.Name)
	}
	return &spec.NodeUnstageVolumeResponse{}, err
}

// NodePublishVolume implements the CSI Node service: it shows the staged file system, or the device, at the target path.
func (n *Node) NodePublishVolume(ctx context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	if r.GetVolumeCapability() == nil {
		return nil, invalid("volume_capability is missing")
	}
	u, err := parseUse(r.GetVolumeCapability())
	if err != nil {
		return nil, invalid("volume_capability: %v", err)
	}
	u.readOnly = u.readOnly || r.GetReadonly()
	ref, unlock, err := n.begin(r.GetVolumeId(), "target_path", r.GetTargetPath(), "NodePublishVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r.GetStagingTargetPath() == "" {
		return nil, refuse(codes.FailedPrecondition, "staging_target_path is missing: stage the volume first")
	}
	d, ok, err := n.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !ok || d.Number == 0 && d.State != host.StateFailed {
		return nil, refuse(codes.FailedPrecondition, "volume %s is not attached on this host: stage it first", ref.Name)
	}
	if d.State != host.StateReady {
		return nil, refuse(codes.FailedPrecondition, "volume %s: %s on this host is %s: %s", ref.Name, d.ItsDevice(), d.State, d.Reason)
	}
	u.readOnly = u.readOnly || d.Attachment.ReadOnly
	return &spec.NodePublishVolumeResponse{}, n.publish(ctx, d, u, r.GetStagingTargetPath(), r.GetTargetPath())
}

// publish binds what is staged to the target, unless it is there.
func (n *Node) publish(ctx context.Context, d device, u use, staging, target string) error {
	list, err := n.mounts.List()
	if err != nil {
		return err
	}
	staging, real := n.mounts.Real(staging), n.mounts.Real(target)
	if m, there := hostfs.MountAt(list, real); there {
		switch {
		case !m.Shows(d.BlockDevice):
			return refuse(codes.FailedPrecondition, "something else is mounted at %s; unmount it", target)
		case (m.Node != 0) != u.block, !u.block && m.ReadOnly != u.readOnly:
			return refuse(codes.AlreadyExists, "volume %s is published at %s already, on other terms (block: %t, read-only: %t)", d.Volume,
				target, m.Node != 0, m.ReadOnly)
		}
		return nil
	}
	other := slices.IndexFunc(list, func(m hostfs.Mount) bool {
		return m.Shows(d.BlockDevice) && m.Whole && m.Path != staging && m.Path != real
	})
	if u.oneUser && other >= 0 {
		return refuse(codes.FailedPrecondition, "volume %s may have one user, and is published at %s", d.Volume, list[other].Path)
	}
	if u.block {
		return n.mounts.BindDevice(ctx, hostfs.DiskOf(d.Attachment), target, u.readOnly)
	}
	if m, there := hostfs.MountAt(list, staging); !there || m.Device != d.Number {
		return refuse(codes.FailedPrecondition, "volume %s is not mounted at %s: stage it first", d.Volume, staging)
	}
	return n.mounts.Bind(ctx, staging, target, u.readOnly)
}

// NodeUnpublishVolume implements the CSI Node service.
func (n *Node) NodeUnpublishVolume(ctx context.Context, r *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	_, unlock, err := n.begin(r.GetVolumeId(), "target_path", r.GetTargetPath(), "NodeUnpublishVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.mounts.Unmount(ctx, r.GetTargetPath()); err != nil {
		return nil, err
	}
	return &spec.NodeUnpublishVolumeResponse{}, n.mounts.Remove(ctx, r.GetTargetPath())
}
