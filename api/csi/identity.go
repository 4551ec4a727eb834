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

// noZone is the zone of a host that was given none. With topology every host says a zone: the orchestrator makes no volume
// while one does not.
const noZone = "none"

// topologyKey is the full key of the zone: topology.csi.storaged.io/zone.
func topologyKey(driver string) string { return "topology." + driver + "/" + zoneKey }

// IdentityConfig says what an Identity tells. Name and Version are required.
type IdentityConfig struct {
	Name, Version string
	// Topology is whether hosts have zones, for the controller and for the node services alike. Without it the driver does
	// not offer VOLUME_ACCESSIBILITY_CONSTRAINTS. With that capability an orchestrator waits for every host's zone before
	// it makes the first volume, and every host reaches every volume anyway.
	Topology bool
	// Ready says whether what the other service needs (the cluster, or the host's gateway) answers; nil: always.
	Ready func(context.Context) error
}

// Identity is the Identity service.
type Identity struct {
	spec.UnimplementedIdentityServer
	config IdentityConfig
}

// NewIdentity returns the service.
func NewIdentity(config IdentityConfig) *Identity { return &Identity{config: config} }

// GetPluginInfo implements the CSI Identity service.
func (i *Identity) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: i.config.Name, VendorVersion: i.config.Version}, nil
}

// GetPluginCapabilities implements the CSI Identity service.
func (i *Identity) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	service := func(t spec.PluginCapability_Service_Type) *spec.PluginCapability {
		return &spec.PluginCapability{Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{Type: t}}}
	}
	expansion := &spec.PluginCapability{Type: &spec.PluginCapability_VolumeExpansion_{
		VolumeExpansion: &spec.PluginCapability_VolumeExpansion{Type: spec.PluginCapability_VolumeExpansion_ONLINE}}}
	offered := []*spec.PluginCapability{
		service(spec.PluginCapability_Service_CONTROLLER_SERVICE),
		expansion, // what can be expanded online can be offline too
	}
	if i.config.Topology {
		offered = append(offered, service(spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS))
	}
	return &spec.GetPluginCapabilitiesResponse{Capabilities: offered}, nil
}

// Probe implements the CSI Identity service. While the cluster or the gateway does not answer, the driver is not ready;
// that is no failure of the driver, which a restart would not mend.
func (i *Identity) Probe(ctx context.Context, _ *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	ready := i.config.Ready == nil || i.config.Ready(ctx) == nil
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(ready)}, nil
}
