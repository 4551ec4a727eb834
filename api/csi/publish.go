package csi

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/host"
)

// Keys of the publish context: what the controller tells the node service about the attachment.
const (
	contextAttachment = "attachment"
	contextAccess     = "access"
	contextReadOnly   = "readOnly"
)

// publishContext describes the attachment to the node service.
func publishContext(a api.Attachment) map[string]string {
	return map[string]string{contextAttachment: a.ID.String(), contextAccess: string(a.Access),
		contextReadOnly: strconv.FormatBool(a.ReadOnly)}
}

// parsePublishContext is the inverse of publishContext: the request for the device, but for its volume.
func parsePublishContext(m map[string]string) (r host.Request, err error) {
	id, err := strconv.ParseUint(m[contextAttachment], 10, 64)
	if err != nil || id == 0 {
		return r, invalid("publish_context: %s=%q is no attachment; was the volume published by this driver's controller?",
			contextAttachment, m[contextAttachment])
	}
	r.AttachmentID, r.Access = storage.AttachmentID(id), storage.Access(m[contextAccess])
	if !r.Access.Valid() {
		return r, invalid("publish_context: %s=%q is not known", contextAccess, m[contextAccess])
	}
	if r.ReadOnly, err = strconv.ParseBool(m[contextReadOnly]); err != nil {
		return r, invalid("publish_context: %s=%q is not known", contextReadOnly, m[contextReadOnly])
	}
	return r, nil
}

// ControllerPublishVolume implements the CSI Controller service: it attaches the volume for a host.
func (c *Controller) ControllerPublishVolume(ctx context.Context, r *spec.ControllerPublishVolumeRequest) (*spec.ControllerPublishVolumeResponse, error) {
	if r.GetNodeId() == "" {
		return nil, invalid("node_id is missing")
	}
	if r.GetVolumeCapability() == nil {
		return nil, invalid("volume_capability is missing")
	}
	u, err := parseUse(r.GetVolumeCapability())
	if err != nil {
		return nil, invalid("volume_capability: %v", err)
	}
	v, unlock, err := c.lockVolume(ctx, r.GetVolumeId(), "ControllerPublishVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	hostID, ok := parseNodeID(r.GetNodeId())
	if !ok {
		return nil, refuse(codes.NotFound, "node %q: there is no such node of this driver; their ids begin with %q", r.GetNodeId(), nodePrefix)
	}
	terms := api.NewAttachment{Volume: storage.VolumeRef{Name: v.Name, ID: v.ID}, Holder: storage.Holder{ID: hostID, Kind: storage.HolderHost, Host: hostID},
		Access: u.access(), ReadOnly: u.readOnly || r.GetReadonly()}
	if r.GetVolumeContext()[parameterTakeOver] == "true" {
		terms.TakeOver, terms.IfGeneration = true, v.Generation
	}
	a, err := c.cluster.Attach(ctx, terms)
	if errors.Is(err, storage.ErrConflict) {
		return nil, c.explainConflict(ctx, v, terms, err)
	}
	if err != nil {
		return nil, err
	}
	return &spec.ControllerPublishVolumeResponse{PublishContext: publishContext(a)}, nil
}

// explainConflict tells the two refusals apart for which the specification has different codes: the node itself has the
// volume on other terms, or another one has it. The latter names the nodes.
func (c *Controller) explainConflict(ctx context.Context, v api.Volume, terms api.NewAttachment, refusal error) error {
	list, err := c.cluster.Attachments(ctx, api.AttachmentFilter{Volume: v.Name}, 0, 0)
	if err != nil {
		return refusal // it is true, and says who has the volume
	}
	var nodes []string
	for _, a := range list {
		switch {
		case a.Volume != v.ID || a.Holder.Kind != storage.HolderHost:
		case a.Holder.ID == terms.Holder.ID && (a.Access != terms.Access || a.ReadOnly != terms.ReadOnly):
			return refuse(codes.AlreadyExists, "volume %s is published at node %s already, on other terms: %v", v.Name, NodeID(a.Holder.ID), refusal)
		case a.Holder.ID != terms.Holder.ID:
			nodes = append(nodes, NodeID(a.Holder.ID))
		}
	}
	if len(nodes) == 0 {
		return refusal
	}
	return refuse(codes.FailedPrecondition, "volume %s is published at %s: %v", v.Name, strings.Join(nodes, ", "), refusal)
}

// ControllerUnpublishVolume implements the CSI Controller service: it detaches the volume from a host, or from all. The
// cluster commits the next generation first, so that it does not matter whether the host has let go, is dead, or only
// looks so.
func (c *Controller) ControllerUnpublishVolume(ctx context.Context, r *spec.ControllerUnpublishVolumeRequest) (*spec.ControllerUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	ctx = forVolume(ctx, r.GetVolumeId())
	done := &spec.ControllerUnpublishVolumeResponse{}
	ref, ok := parseVolumeID(r.GetVolumeId())
	if !ok {
		return done, nil // there is none, and never was
	}
	unlock, err := c.locks.lock(ref.Name, "ControllerUnpublishVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	hosts, err := c.publishedAt(ctx, ref, r.GetNodeId())
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		if err := c.cluster.Detach(ctx, api.Detachment{Volume: ref, HolderID: h}); err != nil && !errors.Is(err, storage.ErrNotFound) {
			return nil, err
		}
	}
	return done, nil
}

// publishedAt returns the hosts to detach: the one of the node, or with an empty id all that have the volume.
func (c *Controller) publishedAt(ctx context.Context, ref storage.VolumeRef, nodeID string) ([]string, error) {
	if nodeID != "" {
		if h, ok := parseNodeID(nodeID); ok {
			return []string{h}, nil
		}
		return nil, nil // no node of ours: nothing was ever published there
	}
	return c.hostsOf(ctx, ref)
}

// hostsOf returns the hosts that have the volume; none if there is no such volume.
func (c *Controller) hostsOf(ctx context.Context, ref storage.VolumeRef) ([]string, error) {
	list, err := c.cluster.Attachments(ctx, api.AttachmentFilter{Volume: ref.Name}, 0, 0)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	var hosts []string
	for _, a := range list {
		if a.Holder.Kind == storage.HolderHost && (ref.ID == 0 || a.Volume == ref.ID) && !slices.Contains(hosts, a.Holder.ID) {
			hosts = append(hosts, a.Holder.ID)
		}
	}
	return hosts, err
}
