package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// DefaultName is the driver's name: what StorageClasses and persistent volumes refer to. It cannot be changed for
// volumes that exist.
const DefaultName = "csi.storaged.io"

// zoneKey is the topology segment of a host's zone, within the driver's name.
const zoneKey = "zone"

// topologyKey is the full key of the zone: topology.csi.storaged.io/zone.
func topologyKey(driver string) string { return "topology." + driver + "/" + zoneKey }

// Identity is the Identity service.
type Identity struct {
	spec.UnimplementedIdentityServer
	name, version string
	ready         func(context.Context) error
}

// NewIdentity returns the service of a driver of that name and version. ready says whether what the other service needs
// (the cluster, or the host's gateway) answers; nil: always.
func NewIdentity(name, version string, ready func(context.Context) error) *Identity {
	return &Identity{name: name, version: version, ready: ready}
}

// GetPluginInfo implements the CSI Identity service.
func (i *Identity) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: i.name, VendorVersion: i.version}, nil
}

// GetPluginCapabilities implements the CSI Identity service.
func (i *Identity) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	service := func(t spec.PluginCapability_Service_Type) *spec.PluginCapability {
		return &spec.PluginCapability{Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{Type: t}}}
	}
	expansion := &spec.PluginCapability{Type: &spec.PluginCapability_VolumeExpansion_{
		VolumeExpansion: &spec.PluginCapability_VolumeExpansion{Type: spec.PluginCapability_VolumeExpansion_ONLINE}}}
	return &spec.GetPluginCapabilitiesResponse{Capabilities: []*spec.PluginCapability{
		service(spec.PluginCapability_Service_CONTROLLER_SERVICE),
		service(spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
		expansion, // what can be expanded online can be offline too
	}}, nil
}

// Probe implements the CSI Identity service. While the cluster or the gateway does not answer, the driver is not ready;
// that is no failure of the driver, which a restart would not mend.
func (i *Identity) Probe(ctx context.Context, _ *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	ready := i.ready == nil || i.ready(ctx) == nil
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(ready)}, nil
}
