package csi

import (
	"context"
	"errors"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// ControllerConfig says what a Controller works with. Name and Cluster are required.
type ControllerConfig struct {
	// Name is the driver's.
	Name    string
	Cluster Cluster
	// ClusterID returns the cluster that Cluster has answered for, zero before the first answer; it becomes part of volumes' ids.
	// nil: it does not.
	ClusterID func() storage.ClusterID
	// Topology is IdentityConfig's: whether volumes may be kept to zones.
	Topology bool
}

// Controller is the Controller service. It may be used concurrently, and by several processes at a time: what two of
// them do to one volume at once is decided by the cluster.
type Controller struct {
	spec.UnimplementedControllerServer
	config  ControllerConfig
	cluster Cluster
	locks   locks // by the volume's name
}

// NewController returns the service.
func NewController(config ControllerConfig) *Controller {
	return &Controller{config: config, cluster: config.Cluster}
}

// controllerCapabilities are those that ControllerGetCapabilities tells.
var controllerCapabilities = []spec.ControllerServiceCapability_RPC_Type{
	spec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
	spec.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
	spec.ControllerServiceCapability_RPC_PUBLISH_READONLY,
	spec.ControllerServiceCapability_RPC_LIST_VOLUMES,
	spec.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
	spec.ControllerServiceCapability_RPC_GET_CAPACITY,
	spec.ControllerServiceCapability_RPC_GET_VOLUME,
	spec.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
	spec.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	spec.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	spec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	spec.ControllerServiceCapability_RPC_MODIFY_VOLUME,
}

// ControllerGetCapabilities implements the CSI Controller service.
func (c *Controller) ControllerGetCapabilities(context.Context, *spec.ControllerGetCapabilitiesRequest) (*spec.ControllerGetCapabilitiesResponse, error) {
	return &spec.ControllerGetCapabilitiesResponse{Capabilities: api.Each(controllerCapabilities,
		func(t spec.ControllerServiceCapability_RPC_Type) *spec.ControllerServiceCapability {
			return &spec.ControllerServiceCapability{Type: &spec.ControllerServiceCapability_Rpc{Rpc: &spec.ControllerServiceCapability_RPC{Type: t}}}
		})}, nil
}

// volume finds a volume by its CSI id: NOT_FOUND when it is gone, also when a namesake is there.
func (c *Controller) volume(ctx context.Context, id string) (api.Volume, error) {
	ref, err := volumeRef(id)
	if err != nil {
		return api.Volume{}, err
	}
	v, err := c.cluster.Volume(forVolume(ctx, id), ref.Name)
	if err == nil {
		err = v.Before("look up", ref.ID)
	}
	switch {
	case errors.Is(err, storage.ErrNotFound), err == nil && (ref.ID != 0 && v.ID != ref.ID || v.State != storage.VolumeReady):
		return api.Volume{}, noVolume(id)
	}
	return v, err
}

// lockVolume is what every call about a volume begins with: its id is read, the volume locked and looked up.
func (c *Controller) lockVolume(ctx context.Context, id, call string) (v api.Volume, unlock func(), err error) {
	ref, err := volumeRef(id)
	if err != nil {
		return v, nil, err
	}
	if unlock, err = c.locks.lock(ref.Name, call); err != nil {
		return v, nil, err
	}
	if v, err = c.volume(ctx, id); err != nil {
		unlock()
		return v, nil, err
	}
	return v, unlock, nil
}

// CreateVolume implements the CSI Controller service.
func (c *Controller) CreateVolume(ctx context.Context, r *spec.CreateVolumeRequest) (*spec.CreateVolumeResponse, error) {
	if r.GetName() == "" {
		return nil, invalid("name is missing")
	}
	uses, err := parseUses(r.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	params, err := parseParameters(r.GetParameters())
	if err != nil {
		return nil, err
	}
	limits, err := parseLimits(r.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	if r.GetVolumeContentSource() != nil {
		return nil, invalid("volume_content_source: volumes cannot be made from snapshots or volumes yet")
	}
	if !slices.ContainsFunc(uses, func(u use) bool { return u.block || !u.readOnly }) {
		return nil, invalid("volume_capabilities: a new volume has no file system, and one that is only mounted read-only never gets one; ask for " +
			"a mode that writes too (ReadWriteOnce), or make a persistent volume of one that holds data (volumeHandle: its name)")
	}
	topology, err := c.accessibleFrom(params, r.GetAccessibilityRequirements())
	if err != nil {
		return nil, err
	}
	size, err := chooseSize(r.GetCapacityRange(), uses, defaultVolumeBytes)
	if err != nil {
		return nil, err
	}
	name := api.VolumeName(r.GetName())
	unlock, err := c.locks.lock(name, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := c.create(ctx, r, api.NewVolume{RequestID: requestID(r.GetName()), Name: name, SizeBytes: size, Labels: params.labels}, limits)
	if err != nil {
		return nil, err
	}
	described := c.describe(v)
	described.VolumeContext, described.AccessibleTopology = params.context(), topology
	return &spec.CreateVolumeResponse{Volume: described}, nil
}

// create makes the volume, or finds the one that an earlier call for the same name has made. One that somebody else has
// made under this name is not adopted: deleting the claim would delete it. Nil limits say nothing of them.
func (c *Controller) create(ctx context.Context, r *spec.CreateVolumeRequest, request api.NewVolume, limits *storage.VolumeLimits) (api.Volume, error) {
	name := request.Name
	if limits != nil {
		request.Limits = *limits
	}
	v, err := c.cluster.CreateVolume(ctx, request)
	if errors.Is(err, storage.ErrInvalid) { // everything else that could be was checked: no cluster of this size ever holds it
		return v, refuse(codes.OutOfRange, "%v", err)
	}
	if !errors.Is(err, storage.ErrConflict) {
		return v, err
	}
	// The request made a volume before, of another size, other limits or other labels than this call would choose, or one that was changed
	// since, or that is being deleted.
	v, err = c.cluster.Volume(ctx, name)
	switch {
	case errors.Is(err, storage.ErrNotFound), err == nil && v.State != storage.VolumeReady:
		return v, refuse(codes.Aborted, "volume %s: the one before it of this name is being deleted; ask again when it is gone", name)
	case err == nil && !inRange(r.GetCapacityRange(), v.SizeBytes):
		return v, refuse(codes.AlreadyExists, "volume %s exists with %d bytes, which is not in the range that is asked for", name, v.SizeBytes)
	case err == nil && limits != nil && v.Limits != *limits:
		return c.cluster.ModifyVolume(ctx, name, v.ID, api.VolumeChange{Limits: limits.Change()})
	}
	return v, err
}

// accessibleFrom returns the zones that the volume is to be used from; none: from anywhere, which is how volumes are.
func (c *Controller) accessibleFrom(p parameters, r *spec.TopologyRequirement) ([]*spec.Topology, error) {
	if !p.requested {
		return nil, nil
	}
	if !c.config.Topology {
		return nil, invalid("parameter %s=requested: the driver runs without --topology, and knows no zones; start its controller and its "+
			"node services with it, or leave the parameter out", parameterAccessibleFrom)
	}
	var list []*spec.Topology
	seen := map[string]bool{}
	for _, t := range r.GetRequisite() {
		zone, ok := t.GetSegments()[topologyKey(c.config.Name)]
		if !ok {
			return nil, invalid("accessibility_requirements: a topology lacks the segment %s", topologyKey(c.config.Name))
		}
		if !seen[zone] {
			list = append(list, &spec.Topology{Segments: map[string]string{topologyKey(c.config.Name): zone}})
		}
		seen[zone] = true
	}
	return list, nil
}

func (c *Controller) describe(v api.Volume) *spec.Volume {
	return &spec.Volume{VolumeId: c.volumeID(v), CapacityBytes: v.SizeBytes}
}

// volumeID is the CSI id of a volume of the cluster.
func (c *Controller) volumeID(v api.Volume) string {
	var cluster storage.ClusterID
	if c.config.ClusterID != nil {
		cluster = c.config.ClusterID()
	}
	return volumeID(storage.VolumeRef{Name: v.Name, ID: v.ID}, cluster)
}

// DeleteVolume implements the CSI Controller service. A volume that somebody has attached is in use.
func (c *Controller) DeleteVolume(ctx context.Context, r *spec.DeleteVolumeRequest) (*spec.DeleteVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	ref, ok := parseVolumeID(r.GetVolumeId())
	if !ok {
		return &spec.DeleteVolumeResponse{}, nil // there is none, and never was
	}
	unlock, err := c.locks.lock(ref.Name, "DeleteVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	err = c.cluster.DeleteVolume(forVolume(ctx, r.GetVolumeId()), ref.Name, ref.ID)
	if errors.Is(err, storage.ErrNotFound) {
		err = nil
	}
	return &spec.DeleteVolumeResponse{}, err
}

// ValidateVolumeCapabilities implements the CSI Controller service.
func (c *Controller) ValidateVolumeCapabilities(ctx context.Context, r *spec.ValidateVolumeCapabilitiesRequest) (*spec.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume_capabilities is empty")
	}
	if _, err := c.volume(ctx, r.GetVolumeId()); err != nil {
		return nil, err
	}
	_, err := parseUses(r.GetVolumeCapabilities())
	if err == nil {
		_, err = parseParameters(r.GetParameters())
	}
	if err == nil {
		_, err = parseLimits(r.GetMutableParameters())
	}
	if err != nil {
		return &spec.ValidateVolumeCapabilitiesResponse{Message: messageOf(err)}, nil
	}
	return &spec.ValidateVolumeCapabilitiesResponse{Confirmed: &spec.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
		MutableParameters: r.GetMutableParameters()}}, nil
}

// ControllerExpandVolume implements the CSI Controller service. The node must be asked too, whether the volume is mounted
// or raw: only when it has answered is the device as large.
func (c *Controller) ControllerExpandVolume(ctx context.Context, r *spec.ControllerExpandVolumeRequest) (*spec.ControllerExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if r.GetCapacityRange() == nil {
		return nil, invalid("capacity_range is missing")
	}
	if r.GetVolumeCapability() != nil {
		if _, err := parseUse(r.GetVolumeCapability()); err != nil {
			return nil, invalid("volume_capability: %v", err)
		}
	}
	v, unlock, err := c.lockVolume(ctx, r.GetVolumeId(), "ControllerExpandVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	size, err := chooseSize(r.GetCapacityRange(), nil, v.SizeBytes)
	if err != nil {
		return nil, err
	}
	if size > v.SizeBytes {
		// What is refused for the lack of room is so for good until somebody acts: an orchestrator lets the user take the growth back then.
		v, err = c.cluster.ResizeVolume(ctx, v.Name, api.NewSize{Bytes: size})
		if errors.Is(err, storage.ErrInvalid) || errors.Is(err, storage.ErrNoSpace) {
			return nil, refuse(codes.OutOfRange, "%v", err)
		}
		if err != nil {
			return nil, err
		}
	} else if limit := r.GetCapacityRange().GetLimitBytes(); limit != 0 && v.SizeBytes > limit {
		return nil, refuse(codes.OutOfRange, "volume %s has %d bytes and cannot shrink to %d", v.Name, v.SizeBytes, limit)
	}
	return &spec.ControllerExpandVolumeResponse{CapacityBytes: v.SizeBytes, NodeExpansionRequired: true}, nil
}

// ControllerModifyVolume implements the CSI Controller service.
func (c *Controller) ControllerModifyVolume(ctx context.Context, r *spec.ControllerModifyVolumeRequest) (*spec.ControllerModifyVolumeResponse, error) {
	limits, err := parseLimits(r.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	v, unlock, err := c.lockVolume(ctx, r.GetVolumeId(), "ControllerModifyVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if limits != nil {
		_, err = c.cluster.ModifyVolume(ctx, v.Name, v.ID, api.VolumeChange{Limits: limits.Change()})
	}
	return &spec.ControllerModifyVolumeResponse{}, err
}
