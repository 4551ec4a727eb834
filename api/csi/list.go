package csi

import (
	"context"
	"errors"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/hostfs"
)

// page returns the volumes after a token, at most max (0: all), and the token of the next page.
func (c *Controller) page(ctx context.Context, token string, max int32) (list []api.Volume, next string, err error) {
	after, ok := parsePageToken(token)
	if !ok {
		return nil, "", refuse(codes.Aborted, "starting_token %q is not one of this driver; begin again without", token)
	}
	if max < 0 {
		return nil, "", invalid("max_entries is negative")
	}
	ask := 0 // all
	if max > 0 {
		ask = int(max) + 1 // one more says whether there is a next page
	}
	if list, err = c.cluster.Volumes(ctx, api.VolumeFilter{}, after, ask); err != nil {
		return nil, "", err
	}
	if max > 0 && len(list) > int(max) {
		list = list[:max]
		next = pageToken(list[max-1].Name)
	}
	return list, next, nil
}

// ListVolumes implements the CSI Controller service.
func (c *Controller) ListVolumes(ctx context.Context, r *spec.ListVolumesRequest) (*spec.ListVolumesResponse, error) {
	list, next, err := c.page(ctx, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	attachments, err := c.cluster.Attachments(ctx, api.AttachmentFilter{}, 0, 0)
	if err != nil {
		return nil, err
	}
	nodes := map[storage.VolumeID][]string{}
	for _, a := range attachments {
		if a.Holder.Kind == storage.HolderHost {
			nodes[a.Volume] = append(nodes[a.Volume], NodeID(a.Holder.ID))
		}
	}
	answer := &spec.ListVolumesResponse{NextToken: next}
	for _, v := range list {
		if v.State == storage.VolumeReady {
			answer.Entries = append(answer.Entries, &spec.ListVolumesResponse_Entry{Volume: c.describe(v),
				Status: &spec.ListVolumesResponse_VolumeStatus{PublishedNodeIds: nodes[v.ID]}})
		}
	}
	return answer, nil
}

// ControllerGetVolume implements the CSI Controller service.
func (c *Controller) ControllerGetVolume(ctx context.Context, r *spec.ControllerGetVolumeRequest) (*spec.ControllerGetVolumeResponse, error) {
	v, err := c.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	hosts, err := c.hostsOf(ctx, storage.VolumeRef{Name: v.Name, ID: v.ID})
	return &spec.ControllerGetVolumeResponse{Volume: c.describe(v),
		Status: &spec.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: api.Each(hosts, NodeID)}}, err
}

// GetCapacity implements the CSI Controller service. Volumes take space as they are written, and every zone reaches all
// of it. So the answer is how much more data the cluster can hold, whatever the topology; for uses that are not offered
// it is 0.
func (c *Controller) GetCapacity(ctx context.Context, r *spec.GetCapacityRequest) (*spec.GetCapacityResponse, error) {
	if _, err := parseParameters(r.GetParameters()); err != nil {
		return nil, err
	}
	answer := &spec.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(storage.MaxVolumeBytes),
		MinimumVolumeSize: wrapperspb.Int64(storage.MinVolumeBytes)}
	for _, capability := range r.GetVolumeCapabilities() {
		u, err := parseUse(capability)
		if err != nil {
			return &spec.GetCapacityResponse{}, nil //nolint:nilerr // what is not offered has no capacity, which is an answer
		}
		if !u.block {
			answer.MinimumVolumeSize.Value = max(answer.MinimumVolumeSize.GetValue(), hostfs.MinBytes(u.fsType))
		}
	}
	status, err := c.cluster.Status(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := c.cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	if !status.StoresHeard() { // no capacity at all would be an answer
		return nil, storage.E("tell", storage.KindUnavailable, "capacity", errors.New("no store was heard; bring up nodes until the catalog has a leader"))
	}
	answer.AvailableCapacity = availableBytes(nodes, status.ReplicasWanted)
	return answer, nil
}
