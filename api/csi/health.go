package csi

import (
	"context"
	"fmt"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// Reasons of health entries, in the form that the specification asks for.
const (
	reasonNoLeader   = "GroupWithoutLeader"
	reasonReplicas   = "ReplicasMissing"
	reasonDevice     = "DeviceFailed"
	reasonConnecting = "DeviceConnecting"
	reasonFrozen     = "FileSystemReadOnly"
	reasonGateway    = "GatewayUnreachable"
	reasonCluster    = "ClusterUnreachable"
)

type healthEntry = spec.VolumeHealth_VolumeHealthEntry

// healthOf says what is wrong with a volume, judged by its groups; wanted is the number of replicas that each is meant to
// have. One entry a reason.
func healthOf(v api.Volume, groups map[storage.GroupID]api.Group, wanted int) []*healthEntry {
	var headless, thin []string
	for _, id := range v.Groups {
		g := groups[id]
		if g.Leader == 0 {
			headless = append(headless, id.String())
			continue
		}
		online := 0
		for _, r := range g.Replicas {
			if r.Online && r.Role == storage.RoleVoter {
				online++
			}
		}
		if online < wanted {
			thin = append(thin, fmt.Sprintf("%s (%d of %d)", id, online, wanted))
		}
	}
	var entries []*healthEntry
	if len(headless) > 0 {
		entries = append(entries, &healthEntry{Status: spec.VolumeHealthErrorType_INACCESSIBLE, Reason: reasonNoLeader,
			Message: "nobody leads groups " + few(headless) + ": their data waits for a majority; see `storagectl status`"})
	}
	if len(thin) > 0 {
		entries = append(entries, &healthEntry{Status: spec.VolumeHealthErrorType_DEGRADED, Reason: reasonReplicas,
			Message: "groups lack replicas: " + few(thin) + "; see `storagectl status`"})
	}
	return entries
}

// few lists at most eight.
func few(list []string) string {
	const most = 8
	if len(list) > most {
		return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %d more", len(list)-most)
	}
	return strings.Join(list, ", ")
}

// groups returns the groups by id, and how many replicas each is meant to have.
func (c *Controller) groups(ctx context.Context) (map[storage.GroupID]api.Group, int, error) {
	list, err := c.cluster.Groups(ctx)
	if err != nil {
		return nil, 0, err
	}
	status, err := c.cluster.Status(ctx)
	if err != nil {
		return nil, 0, err
	}
	groups := make(map[storage.GroupID]api.Group, len(list))
	for _, g := range list {
		groups[g.ID] = g
	}
	// A cluster of fewer nodes than replicas is not degraded in what it can be.
	return groups, min(status.ReplicasWanted, max(status.NodesTotal, 1)), nil
}

// ControllerGetVolumeHealth implements the CSI Controller service.
func (c *Controller) ControllerGetVolumeHealth(ctx context.Context, r *spec.ControllerGetVolumeHealthRequest) (*spec.ControllerGetVolumeHealthResponse, error) {
	v, err := c.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	groups, wanted, err := c.groups(ctx)
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeHealthResponse{VolumeHealth: &spec.VolumeHealth{VolumeId: r.GetVolumeId(),
		HealthStatuses: healthOf(v, groups, wanted)}}, nil
}

// ControllerListVolumeHealth implements the CSI Controller service: it lists the volumes with which something is wrong.
// With max_entries a page is that many volumes looked at, so it may hold fewer entries, or none, before the last.
func (c *Controller) ControllerListVolumeHealth(ctx context.Context, r *spec.ControllerListVolumeHealthRequest) (*spec.ControllerListVolumeHealthResponse, error) {
	list, next, err := c.page(ctx, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	groups, wanted, err := c.groups(ctx)
	if err != nil {
		return nil, err
	}
	answer := &spec.ControllerListVolumeHealthResponse{NextToken: next}
	for _, v := range list {
		if entries := healthOf(v, groups, wanted); len(entries) > 0 && v.State == storage.VolumeReady {
			answer.Entries = append(answer.Entries, &spec.VolumeHealth{VolumeId: c.volumeID(v), HealthStatuses: entries})
		}
	}
	return answer, nil
}
