package csi_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/csi/csitest"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostfs"
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
		m := csitest.New().Machine("web-1", tc.zone)
		info, err := csi.NewNode(csi.NodeConfig{Name: csi.DefaultName, Devices: m, Mounts: hostfs.InSlots(m.Mounts()), Topology: tc.topology}).NodeGetInfo(t.Context(), nil)
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
	_, err := start(w, w.Machine("web-1", "z1")).CreateVolume(t.Context(), request)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "--topology") {
		t.Errorf("%v", err)
	}
	c := csi.NewController(csi.ControllerConfig{Name: csi.DefaultName, Cluster: w.Client(), Topology: true})
	if _, err := c.CreateVolume(t.Context(), request); err != nil {
		t.Error(err)
	}
}

// renamed is a host whose gateway says another id or zone than before. It implements hostfs.Devices.
type renamed struct {
	hostfs.Devices
	info host.Info
	err  error
}

func (r *renamed) Info(context.Context) (host.Info, error) { return r.info, r.err }

// TestZoneOfAnother: while gateways are being replaced, the driver does not report the zone of the old one. The kubelet keeps the
// first zone as a label of the node, and refuses a driver that reports another one later.
func TestZoneOfAnother(t *testing.T) {
	for _, tc := range []struct {
		zones []string
		says  string
		told  bool
	}{{nil, "", true}, {nil, "c", true}, {[]string{"a", "b"}, "b", true}, {[]string{"a", "b"}, "", false}, {[]string{"a", "b"}, "c", false}} {
		m := csitest.New().Machine("web-1", tc.says)
		node := csi.NewNode(csi.NodeConfig{Name: csi.DefaultName, Devices: m, Mounts: hostfs.InSlots(m.Mounts()), Topology: true, Zones: tc.zones})
		info, err := node.NodeGetInfo(t.Context(), nil)
		if tc.told != (err == nil) || err != nil && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--zones")) {
			t.Errorf("zones %q, the gateway says %q: %v, %v", tc.zones, tc.says, info, err)
		}
	}
}

// TestChangedHost: a driver knows that what it has told of its host is not so any more, and does not take silence for a change.
func TestChangedHost(t *testing.T) {
	m := csitest.New().Machine("web-1", "a")
	r := &renamed{Devices: m, info: host.Info{HostID: "web-1", Zone: "a"}}
	for _, topology := range []bool{false, true} {
		node := csi.NewNode(csi.NodeConfig{Name: csi.DefaultName, Devices: r, Mounts: hostfs.InSlots(m.Mounts()), Topology: topology})
		if what := node.Changed(t.Context()); what != "" {
			t.Errorf("before anything was told: %s", what)
		}
		if _, err := node.NodeGetInfo(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			info host.Info
			err  error
			says string
		}{
			{host.Info{HostID: "web-1", Zone: "a"}, nil, ""},
			{host.Info{}, errors.New("no gateway answers"), ""},
			{host.Info{HostID: "blue-web-1", Zone: "a"}, nil, "blue-web-1"},
			{host.Info{HostID: "web-1", Zone: "b"}, nil, map[bool]string{true: `zone "b"`}[topology]},
		} {
			now := &renamed{Devices: m, info: tc.info, err: tc.err}
			*r = *now
			if what := node.Changed(t.Context()); (what == "") != (tc.says == "") || !strings.Contains(what, tc.says) {
				t.Errorf("topology %t, the gateway says %+v (%v): %q", topology, tc.info, tc.err, what)
			}
		}
		*r = renamed{Devices: m, info: host.Info{HostID: "web-1", Zone: "a"}}
	}
}
