package csi_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/csi/csitest"
	"github.com/storaged/storaged/api/hostfs"
)

const gib = 1 << 30

// driver is a driver that has just started: controller and node service of a world, over a socket in memory.
type driver struct {
	spec.ControllerServer
	spec.NodeServer
}

func start(w *csitest.World, m *csitest.Machine) driver {
	return driver{csi.NewController(csi.ControllerConfig{Name: csi.DefaultName, Cluster: w.Client()}),
		csi.NewNode(csi.NodeConfig{Name: csi.DefaultName, Devices: m, Mounts: hostfs.InSlots(m.Mounts())})}
}

func mountOf(mode spec.VolumeCapability_AccessMode_Mode, fsType string) *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: fsType}},
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode}}
}

func blockOf(mode spec.VolumeCapability_AccessMode_Mode) *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}},
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode}}
}

// life is a volume's, as an orchestrator leads it: each step is one call, with what it returned kept for the next ones.
type life struct {
	capability *spec.VolumeCapability
	node       string
	volume     *spec.Volume
	context    map[string]string
}

const (
	staging = "/staging/globalmount"
	target  = "/pods/1/volumes/data/mount"
)

// calls are the steps of a life, in order.
func (l *life) calls() []func(context.Context, driver) error {
	return []func(context.Context, driver) error{
		func(ctx context.Context, d driver) error {
			r, err := d.CreateVolume(ctx, &spec.CreateVolumeRequest{Name: "pvc-1", VolumeCapabilities: []*spec.VolumeCapability{l.capability},
				CapacityRange: &spec.CapacityRange{RequiredBytes: gib}, MutableParameters: map[string]string{"max-bandwidth": "1Mi", "max-iops": "100"},
				Parameters: map[string]string{"labels": "env=prod,team=shop"}})
			l.volume = r.GetVolume()
			return err
		},
		func(ctx context.Context, d driver) error {
			r, err := d.NodeGetInfo(ctx, &spec.NodeGetInfoRequest{})
			l.node = r.GetNodeId()
			return err
		},
		func(ctx context.Context, d driver) error {
			r, err := d.ControllerPublishVolume(ctx, &spec.ControllerPublishVolumeRequest{VolumeId: l.volume.GetVolumeId(), NodeId: l.node,
				VolumeCapability: l.capability})
			l.context = r.GetPublishContext()
			return err
		},
		func(ctx context.Context, d driver) error {
			_, err := d.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: l.volume.GetVolumeId(), PublishContext: l.context,
				StagingTargetPath: staging, VolumeCapability: l.capability})
			return err
		},
		func(ctx context.Context, d driver) error {
			_, err := d.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{VolumeId: l.volume.GetVolumeId(), PublishContext: l.context,
				StagingTargetPath: staging, TargetPath: target, VolumeCapability: l.capability})
			return err
		},
		func(ctx context.Context, d driver) error {
			_, err := d.ControllerExpandVolume(ctx, &spec.ControllerExpandVolumeRequest{VolumeId: l.volume.GetVolumeId(),
				CapacityRange: &spec.CapacityRange{RequiredBytes: 2 * gib}})
			return err
		},
		func(ctx context.Context, d driver) error {
			r, err := d.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{VolumeId: l.volume.GetVolumeId(), VolumePath: target,
				CapacityRange: &spec.CapacityRange{RequiredBytes: 2 * gib}})
			if err == nil && r.GetCapacityBytes() != 2*gib {
				return fmt.Errorf("expanded to %d bytes", r.GetCapacityBytes())
			}
			return err
		},
		func(ctx context.Context, d driver) error {
			_, err := d.ControllerModifyVolume(ctx, &spec.ControllerModifyVolumeRequest{VolumeId: l.volume.GetVolumeId(),
				MutableParameters: map[string]string{"max-bandwidth": "2000000"}})
			return err
		},
		func(ctx context.Context, d driver) error {
			_, err := d.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: l.volume.GetVolumeId(), TargetPath: target})
			return err
		},
		func(ctx context.Context, d driver) error {
			_, err := d.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: l.volume.GetVolumeId(), StagingTargetPath: staging})
			return err
		},
		func(ctx context.Context, d driver) error {
			_, err := d.ControllerUnpublishVolume(ctx, &spec.ControllerUnpublishVolumeRequest{VolumeId: l.volume.GetVolumeId(), NodeId: l.node})
			return err
		},
	}
}

// live leads a life in a new world in which step number `at` of all steps fails, and repeats the call that failed with a
// driver that has just started. It returns the world, the machine, and how many steps were made.
func live(t *testing.T, capability *spec.VolumeCapability, at int, when csitest.When) (*csitest.World, *csitest.Machine, *life, int) {
	t.Helper()
	w := csitest.New()
	m := w.Machine("web-1", "z1")
	l := &life{capability: capability}
	ctx := t.Context()
	w.Fail(func(step int) csitest.When {
		if step == at {
			return when
		}
		return csitest.Never
	})
	d := start(w, m)
	for i, call := range l.calls() {
		for range 2 { // and once more, when it has succeeded
			if call(ctx, d) == nil {
				continue
			}
			d = start(w, m)
			if err := call(ctx, d); err != nil {
				t.Fatalf("step %d failed (%d); call %d was repeated: %v", at, when, i, err)
			}
		}
	}
	return w, m, l, w.Steps()
}

// TestFaults fails every step of a volume's life once, before it has its effect and after, and begins again with a driver
// that knows nothing. Whatever failed, the end is the same. This is invariant I8 of docs/architecture.md for the driver.
// It fails, for example, when CreateVolume's request id is not the same each time, when NodeStageVolume mounts without
// looking at what is mounted, or when NodeUnstageVolume gives up because the mount is gone.
func TestFaults(t *testing.T) {
	writer := spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	for name, capability := range map[string]*spec.VolumeCapability{
		"ext4": mountOf(writer, "ext4"), "xfs": mountOf(writer, "xfs"), "any": mountOf(writer, ""), "block": blockOf(writer),
		"one user": mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, "ext4"),
		"shared":   blockOf(spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER),
	} {
		t.Run(name, func(t *testing.T) {
			_, _, _, steps := live(t, capability, 0, csitest.Never)
			for at := 1; at <= steps; at++ {
				for _, when := range []csitest.When{csitest.Before, csitest.After} {
					w, m, l, _ := live(t, capability, at, when)
					w.Fail(nil)
					if left := m.Left(); len(left) > 0 {
						t.Fatalf("step %d failed (%d): there is left %v", at, when, left)
					}
					v, err := w.Cluster().Volume(t.Context(), "pvc-1")
					if err != nil || v.SizeBytes != 2*gib || len(v.Attachments) > 0 {
						t.Fatalf("step %d failed (%d): the volume is %+v, %v", at, when, v, err)
					}
					if all, _ := w.Cluster().Volumes(t.Context(), api.VolumeFilter{}, "", 10); len(all) != 1 {
						t.Fatalf("step %d failed (%d): %d volumes were made", at, when, len(all))
					}
					if fsType, size := w.Content(v.ID); capability.GetBlock() == nil && (fsType == "" || size != 2*gib) {
						t.Fatalf("step %d failed (%d): %q of %d bytes is on it", at, when, fsType, size)
					}
					if v.Limits != (storage.VolumeLimits{MaxBytesPerSecond: 2000000}) {
						t.Fatalf("step %d failed (%d): the limits are %+v", at, when, v.Limits)
					}
					if !maps.Equal(v.Labels, map[string]string{"env": "prod", "team": "shop"}) {
						t.Fatalf("step %d failed (%d): the labels are %v", at, when, v.Labels)
					}
					deleteFails(t, w, m, l)
				}
			}
		})
	}
}

// deleteFails deletes the volume of a life, with every outcome of the first try.
func deleteFails(t *testing.T, w *csitest.World, m *csitest.Machine, l *life) {
	t.Helper()
	w.Fail(func(step int) csitest.When {
		if step == 1 {
			return csitest.After
		}
		return csitest.Never
	})
	r := &spec.DeleteVolumeRequest{VolumeId: l.volume.GetVolumeId()}
	if _, err := start(w, m).DeleteVolume(t.Context(), r); err == nil {
		t.Fatal("a lost answer was taken for one")
	}
	if _, err := start(w, m).DeleteVolume(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// codeOf is the code of a service's own error, or OK.
func codeOf(err error) codes.Code { return status.Code(csi.StatusError(err)) }

// TestMoves: a host that is gone keeps nothing. The volume is unpublished from it without its help, what it wrote is
// there on the next host, and when it comes back it cleans up and starts again.
func TestMoves(t *testing.T) {
	ctx := t.Context()
	w := csitest.New()
	a, b := w.Machine("a", "z1"), w.Machine("b", "z2")
	on := func(m *csitest.Machine) (driver, *life) {
		return start(w, m), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
	}
	da, la := on(a)
	db, lb := on(b)
	do := func(d driver, l *life, calls ...int) error {
		for _, i := range calls {
			if err := l.calls()[i](ctx, d); err != nil {
				return err
			}
		}
		return nil
	}
	if err := do(da, la, 0, 1, 2, 3, 4); err != nil {
		t.Fatal(err)
	}
	if err := do(db, lb, 0, 1); err != nil {
		t.Fatal(err)
	}
	if err := do(db, lb, 2); codeOf(err) != codes.FailedPrecondition || !containsAll(err.Error(), "host:a") {
		t.Fatalf("published at two hosts at once: %v", err)
	}
	if err := do(db, la, 10); err != nil { // by the controller, of host a
		t.Fatal(err)
	}
	if err := do(db, lb, 2, 3, 4); err != nil {
		t.Fatal(err)
	}
	health, err := da.NodeGetVolumeHealth(ctx, &spec.NodeGetVolumeHealthRequest{VolumeId: la.volume.GetVolumeId()})
	if err != nil || len(health.GetVolumeHealth().GetHealthStatuses()) != 1 {
		t.Errorf("the host that lost the volume says %v, %v", health, err)
	}
	if err := do(da, la, 8, 9); err != nil {
		t.Errorf("the host that lost the volume cannot clean up: %v", err)
	}
	if left := a.Left(); len(left) > 0 {
		t.Errorf("there is left %v", left)
	}
	if err := do(db, lb, 8, 9, 10); err != nil {
		t.Fatal(err)
	}
	if err := do(da, la, 2, 3, 4, 8, 9, 10); err != nil {
		t.Errorf("back at the first host: %v", err)
	}
}

// TestTakeOver: with the parameter, a publish to another host takes the volume away from the one before.
func TestTakeOver(t *testing.T) {
	ctx := t.Context()
	w := csitest.New()
	d := start(w, w.Machine("a", ""))
	capability := mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")
	made, err := d.CreateVolume(ctx, &spec.CreateVolumeRequest{Name: "pvc-1", VolumeCapabilities: []*spec.VolumeCapability{capability},
		Parameters: map[string]string{"takeOver": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"a", "b", "b", "a"} {
		r := &spec.ControllerPublishVolumeRequest{VolumeId: made.GetVolume().GetVolumeId(), NodeId: csi.NodeID(node), VolumeCapability: capability,
			VolumeContext: made.GetVolume().GetVolumeContext()}
		if _, err := d.ControllerPublishVolume(ctx, r); err != nil {
			t.Fatalf("at %s: %v", node, err)
		}
		v, err := w.Cluster().Volume(ctx, "pvc-1")
		if err != nil || len(v.Attachments) != 1 || v.Attachments[0].Holder.ID != node {
			t.Fatalf("after %s: %+v, %v", node, v.Attachments, err)
		}
	}
	if v, _ := w.Cluster().Volume(ctx, "pvc-1"); v.Generation != 3 {
		t.Errorf("the generation is %d; it moved with every takeover and with none that was repeated", v.Generation)
	}
}

// TestLostDevice: a device that the gateway has lost (its keeper was killed with it, say) is removed by the calls that
// give the volume up, and by those that want it again, without a person's help. The line is the one in Release that says
// force.
func TestLostDevice(t *testing.T) {
	for name, calls := range map[string][]int{"given up": {8, 9, 10}, "wanted again": {8, 9, 3, 4, 8, 9, 10}, "restarted": {8, 3}} {
		t.Run(name, func(t *testing.T) {
			w := csitest.New()
			m := w.Machine("a", "z1")
			d, l := start(w, m), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
			for _, i := range []int{0, 1, 2, 3, 4} {
				if err := l.calls()[i](t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
			m.Lose("pvc-1")
			if name == "restarted" { // the host, which mounts nothing by itself
				m.Reboot()
			}
			for _, i := range calls {
				if err := l.calls()[i](t.Context(), d); err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
			}
			if left := m.Left(); name != "restarted" && len(left) > 0 {
				t.Errorf("there is left %v", left)
			}
		})
	}
}

func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}
