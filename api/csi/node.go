package csi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostfs"
)

// NodeConfig says what a Node works with. Name, Devices and Mounts are required.
type NodeConfig struct {
	// Name is the driver's.
	Name    string
	Devices hostfs.Devices
	Mounts  hostfs.Mounts
	// MaxVolumes is how many volumes the orchestrator may publish on this host; 0: it decides.
	MaxVolumes int64
	// Topology is IdentityConfig's: whether the host says its zone.
	Topology bool
	// Zones are those that the host may be in; empty: any, or none. An orchestrator keeps the first zone that it hears of a host.
	// While gateways are being replaced by those of zones, the old one would report another zone, or none.
	Zones []string
	// Log gets a line a thing that no call's answer says; nil discards.
	Log *slog.Logger
}

// Node is the Node service of one host. It may be used concurrently.
type Node struct {
	spec.UnimplementedNodeServer
	config  NodeConfig
	devices hostfs.Devices
	mounts  hostfs.Mounts
	log     *slog.Logger
	locks   locks                        // by the volume's CSI id
	told    atomic.Pointer[hostIdentity] // what NodeGetInfo has said last; nil: nothing yet
}

// hostIdentity is what of a host an orchestrator keeps until the driver is registered again.
type hostIdentity struct{ id, zone string }

// NewNode returns the service.
func NewNode(config NodeConfig) *Node {
	return &Node{config: config, devices: config.Devices, mounts: config.Mounts, log: cmp.Or(config.Log, slog.New(slog.DiscardHandler))}
}

// nodeCapabilities are those that NodeGetCapabilities tells.
var nodeCapabilities = []spec.NodeServiceCapability_RPC_Type{
	spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
	spec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	spec.NodeServiceCapability_RPC_EXPAND_VOLUME,
	spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
	spec.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
}

// NodeGetCapabilities implements the CSI Node service.
func (n *Node) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	return &spec.NodeGetCapabilitiesResponse{Capabilities: api.Each(nodeCapabilities,
		func(t spec.NodeServiceCapability_RPC_Type) *spec.NodeServiceCapability {
			return &spec.NodeServiceCapability{Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: t}}}
		})}, nil
}

// NodeGetInfo implements the CSI Node service.
func (n *Node) NodeGetInfo(ctx context.Context, _ *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	info, err := n.devices.Info(ctx)
	if err != nil {
		return nil, err
	}
	if err := CheckHostID(info.HostID); err != nil {
		return nil, refuse(codes.FailedPrecondition, "the id of the host's gateway is not valid: %v", err)
	}
	if zones := n.config.Zones; n.config.Topology && len(zones) > 0 && !slices.Contains(zones, info.Zone) {
		return nil, refuse(codes.FailedPrecondition, "the host's gateway says the zone %q, and the driver was told %q (--zones): the gateway is another's "+
			"still, or runs with another --zone", info.Zone, zones)
	}
	n.told.Store(&hostIdentity{info.HostID, info.Zone})
	answer := &spec.NodeGetInfoResponse{NodeId: NodeID(info.HostID), MaxVolumesPerNode: n.config.MaxVolumes}
	if n.config.Topology {
		answer.AccessibleTopology = &spec.Topology{Segments: map[string]string{topologyKey(n.config.Name): cmp.Or(info.Zone, noZone)}}
	}
	return answer, nil
}

// Changed says which answer of NodeGetInfo is wrong by now: the host's gateway runs under another id, or in another zone. The
// orchestrator would publish volumes at a host that does not exist. Empty: nothing has changed, or it is not known whether.
func (n *Node) Changed(ctx context.Context) string {
	told := n.told.Load()
	if told == nil {
		return ""
	}
	info, err := n.devices.Info(ctx)
	switch {
	case err != nil || CheckHostID(info.HostID) != nil:
		return ""
	case info.HostID != told.id:
		return fmt.Sprintf("the host's gateway has the id %q, and the orchestrator was told %q", info.HostID, told.id)
	case n.config.Topology && info.Zone != told.zone:
		return fmt.Sprintf("the host's gateway is in the zone %q, and the orchestrator was told %q", info.Zone, told.zone)
	}
	return ""
}

// begin is what a call begins with that changes something about a volume at a path: its id and the path are checked, and the volume is
// locked.
func (n *Node) begin(id, pathField, path, call string) (ref storage.VolumeRef, unlock func(), err error) {
	if path == "" {
		return ref, nil, invalid("%s is missing", pathField)
	}
	if ref, err = volumeRef(id); err != nil {
		return ref, nil, err
	}
	if unlock, err = n.locks.lock(id, call); err != nil {
		return ref, nil, err
	}
	if err = checkPath(pathField, path); err != nil {
		unlock()
	}
	return ref, unlock, err
}

// checkPath returns an error for a path that must not be worked on. Paths come from the orchestrator, which runs as root
// as we do; this is against mistakes.
func checkPath(field, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != strings.TrimSuffix(path, "/") || strings.ContainsRune(path, 0) || len(path) > 4095 {
		return invalid("%s %q is no clean absolute path", field, path)
	}
	return nil
}

// device is the volume's block device on this host.
type device struct {
	host.Attachment
	hostfs.BlockDevice
}

// find returns the device of a volume that is attached here; ok is false without one. A namesake of the volume is not it.
func (n *Node) find(ctx context.Context, ref storage.VolumeRef) (d device, ok bool, err error) {
	list, err := n.devices.Attachments(ctx)
	if err != nil {
		return d, false, err
	}
	for _, a := range list {
		if a.Volume != ref.Name || ref.ID != 0 && a.VolumeID != ref.ID {
			continue
		}
		d.Attachment = a
		if a.Device == "" {
			return d, true, nil // it is being made
		}
		b, err := n.mounts.Device(ctx, hostfs.DiskOf(a))
		switch storage.KindOf(err) {
		case storage.KindNotFound:
		case storage.KindConflict: // the gateway has not seen yet that it is another's
			d.State, d.Reason = host.StateFailed, err.Error()
		default:
			if err != nil {
				return d, false, err
			}
		}
		d.BlockDevice = b
		return d, true, nil
	}
	return d, false, nil
}

// NodeGetVolumeStats implements the CSI Node service.
func (n *Node) NodeGetVolumeStats(ctx context.Context, r *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	if r.GetVolumePath() == "" {
		return nil, invalid("volume_path is missing")
	}
	d, m, err := n.mounted(ctx, r.GetVolumeId(), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if m.Node != 0 {
		return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{{Unit: spec.VolumeUsage_BYTES, Total: d.BlockDevice.SizeBytes}}}, nil
	}
	u, err := n.mounts.Usage(ctx, r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{
		{Unit: spec.VolumeUsage_BYTES, Total: u.TotalBytes, Used: u.UsedBytes, Available: u.AvailableBytes},
		{Unit: spec.VolumeUsage_INODES, Total: u.TotalInodes, Used: u.UsedInodes, Available: u.AvailableInodes},
	}}, nil
}

// mounted returns the volume's device and its mount at path: NOT_FOUND if the volume is not there.
func (n *Node) mounted(ctx context.Context, id, path string) (device, hostfs.Mount, error) {
	ref, err := volumeRef(id)
	if err != nil {
		return device{}, hostfs.Mount{}, err
	}
	d, ok, err := n.find(ctx, ref)
	if err != nil {
		return d, hostfs.Mount{}, err
	}
	list, err := n.mounts.List()
	if err != nil {
		return d, hostfs.Mount{}, err
	}
	m, there := hostfs.MountAt(list, n.mounts.Real(path))
	if !ok || !there || !m.Shows(d.BlockDevice) {
		return d, m, refuse(codes.NotFound, "volume %s is not at %s on this host", ref.Name, path)
	}
	return d, m, nil
}

// NodeExpandVolume implements the CSI Node service: it waits until the device has grown, and grows the file system. It
// works online, at the staging path as at any target.
func (n *Node) NodeExpandVolume(ctx context.Context, r *spec.NodeExpandVolumeRequest) (*spec.NodeExpandVolumeResponse, error) {
	required, limit := r.GetCapacityRange().GetRequiredBytes(), r.GetCapacityRange().GetLimitBytes()
	if required < 0 || limit < 0 || limit != 0 && required > limit {
		return nil, invalid("capacity_range requires %d bytes and limits them to %d", required, limit)
	}
	if r.GetVolumeCapability() != nil {
		if _, err := parseUse(r.GetVolumeCapability()); err != nil {
			return nil, invalid("volume_capability: %v", err)
		}
	}
	if r.GetVolumePath() == "" {
		return nil, invalid("volume_path is missing")
	}
	ref, err := volumeRef(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	unlock, err := n.locks.lock(r.GetVolumeId(), "NodeExpandVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, m, err := n.mounted(ctx, r.GetVolumeId(), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	a, err := n.devices.Refresh(ctx, ref.Name, required)
	if err != nil {
		return nil, err
	}
	if limit != 0 && a.SizeBytes > limit {
		return nil, refuse(codes.OutOfRange, "volume %s has %d bytes already, more than %d", ref.Name, a.SizeBytes, limit)
	}
	if m.Node == 0 && !a.ReadOnly {
		if err := n.grow(ctx, d); err != nil {
			return nil, err
		}
	}
	return &spec.NodeExpandVolumeResponse{CapacityBytes: a.SizeBytes}, nil
}

// grow makes the file system of the device as large as the device, through a mount of it that may be written; without one
// it stays as it is.
func (n *Node) grow(ctx context.Context, d device) error {
	list, err := n.mounts.List()
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Device == d.Number && !m.ReadOnly && !m.FrozenFS && m.Whole {
			return n.mounts.Grow(ctx, hostfs.DiskOf(d.Attachment), m.Path)
		}
	}
	return nil
}

// NodeGetVolumeHealth implements the CSI Node service.
func (n *Node) NodeGetVolumeHealth(ctx context.Context, r *spec.NodeGetVolumeHealthRequest) (*spec.NodeGetVolumeHealthResponse, error) {
	ref, err := volumeRef(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	d, ok, err := n.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, refuse(codes.NotFound, "volume %s is not attached on this host", ref.Name)
	}
	list, err := n.mounts.List()
	if err != nil {
		return nil, err
	}
	return &spec.NodeGetVolumeHealthResponse{VolumeHealth: &spec.VolumeHealth{VolumeId: r.GetVolumeId(), HealthStatuses: deviceHealth(d, list)}}, nil
}

// deviceHealth says what is wrong with a volume on this host.
func deviceHealth(d device, mounts []hostfs.Mount) (entries []*healthEntry) {
	switch d.State {
	case host.StateFailed:
		entries = append(entries, &healthEntry{Status: spec.VolumeHealthErrorType_INACCESSIBLE, Reason: reasonDevice, Message: d.Reason})
	case host.StateConnecting:
		entries = append(entries, &healthEntry{Status: spec.VolumeHealthErrorType_DEGRADED, Reason: reasonConnecting, Message: d.Reason})
	}
	for _, m := range mounts {
		if m.Device == d.Number && d.Number != 0 && m.FrozenFS && !m.ReadOnly {
			return append(entries, &healthEntry{Status: spec.VolumeHealthErrorType_INACCESSIBLE, Reason: reasonFrozen,
				Message: "the kernel has made the " + m.FSType + " at " + m.Path + " read-only after an error; its log says why"})
		}
	}
	return entries
}

// NodeGetStorageHealth implements the CSI Node service.
func (n *Node) NodeGetStorageHealth(ctx context.Context, _ *spec.NodeGetStorageHealthRequest) (*spec.NodeGetStorageHealthResponse, error) {
	answer := &spec.NodeGetStorageHealthResponse{}
	unreachable := func(reason, message string) {
		answer.BackendHealth = append(answer.BackendHealth, &spec.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status: spec.StorageHealthErrorType_STORAGE_UNREACHABLE, Reason: reason, Message: message})
	}
	info, err := n.devices.Info(ctx)
	switch {
	case err != nil:
		unreachable(reasonGateway, err.Error())
	case info.Cluster.IsZero():
		unreachable(reasonCluster, "the host's gateway has not reached the cluster yet, at "+strings.Join(info.Endpoints, ", "))
	}
	return answer, nil
}
