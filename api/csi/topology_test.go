package csi_test

import (
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/csi/csitest"
)

// TestTopology: the orchestrator waits for every host's zone once it is told that volumes may be kept to zones. So it is
// told that only when zones are asked for, and every host says one then.
func TestTopology(t *testing.T) {
	const key = "topology.csi.storaged.io/zone"
	for _, tc := range []struct {
		topology   bool
		zone, says string
	}{{false, "", ""}, {false, "z1", ""}, {true, "z1", "z1"}, {true, "", "none"}} {
		identity := csi.NewIdentity(csi.IdentityConfig{Name: csi.DefaultName, Version: "test", Topology: tc.topology})
		offered, err := identity.GetPluginCapabilities(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		constraints := slices.ContainsFunc(offered.GetCapabilities(), func(c *spec.PluginCapability) bool {
			return c.GetService().GetType() == spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS
		})
		h := csitest.New().Host("web-1", tc.zone)
		info, err := csi.NewNode(csi.NodeConfig{Name: csi.DefaultName, Devices: h, Mounts: h.Mounts(), Topology: tc.topology}).NodeGetInfo(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.GetAccessibleTopology().GetSegments()[key]; constraints != tc.topology || got != tc.says {
			t.Errorf("topology %t, zone %q: constraints are offered: %t, the host says %q, want %q", tc.topology, tc.zone, constraints, got, tc.says)
		}
	}
}

// TestZonesWithoutTopology: a class that keeps volumes to zones is refused by a driver that knows none, with the next step.
func TestZonesWithoutTopology(t *testing.T) {
	w := csitest.New()
	request := &spec.CreateVolumeRequest{Name: "pvc-1", VolumeCapabilities: []*spec.VolumeCapability{mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "ext4")},
		Parameters: map[string]string{"accessibleFrom": "requested"}}
	_, err := start(w, w.Host("web-1", "z1")).CreateVolume(t.Context(), request)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "--topology") {
		t.Errorf("%v", err)
	}
	c := csi.NewController(csi.ControllerConfig{Name: csi.DefaultName, Cluster: w.Client(), Topology: true})
	if _, err := c.CreateVolume(t.Context(), request); err != nil {
		t.Error(err)
	}
}
