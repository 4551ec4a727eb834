package csi_test

import (
	"errors"
	"fmt"
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
)

// run carries the steps of a life out from one to another, and returns the error of the last.
func (l *life) run(t *testing.T, d driver, from, to int) (err error) {
	t.Helper()
	for i, call := range l.calls()[from:to] {
		if err = csi.StatusError(call(t.Context(), d)); err != nil && from+i < to-1 {
			t.Fatalf("step %d: %v", from+i, err)
		}
	}
	return err
}

// The steps of a life by number.
const (
	published = 3 // by the controller
	staged    = 4
	shown     = 5 // by NodePublishVolume
)

// TestDeviceIsAnothers: the path of a volume's device has become another's between two calls, and the gateway has not noticed
// yet. The pod must not be given it.
func TestDeviceIsAnothers(t *testing.T) {
	for _, capability := range []*spec.VolumeCapability{mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, ""),
		blockOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)} {
		w := csitest.New()
		m := w.Machine("web-1", "")
		d, l := start(w, m), &life{capability: capability}
		if err := l.run(t, d, 0, staged); err != nil {
			t.Fatal(err)
		}
		m.Steal("pvc-1")
		if err := l.run(t, d, staged, shown); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%v: %v", capability, err)
		}
	}
}

// TestDeviceHasFailed: a device that answers errors is not shown to a pod.
func TestDeviceHasFailed(t *testing.T) {
	w := csitest.New()
	m := w.Machine("web-1", "")
	d, l := start(w, m), &life{capability: blockOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)}
	if err := l.run(t, d, 0, staged); err != nil {
		t.Fatal(err)
	}
	m.Lose("pvc-1")
	if err := l.run(t, d, staged, shown); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
}

// TestHoldsData: a volume that was written raw is not formatted over.
func TestHoldsData(t *testing.T) {
	w := csitest.New()
	d, l := start(w, w.Machine("web-1", "")), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
	if err := l.run(t, d, 0, published); err != nil {
		t.Fatal(err)
	}
	v, err := w.Cluster().Volume(t.Context(), "pvc-1")
	if err != nil {
		t.Fatal(err)
	}
	w.Write(v.ID)
	if err := l.run(t, d, published, staged); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
	if fsType, _ := w.Content(v.ID); fsType != "" {
		t.Errorf("it was formatted as %s", fsType)
	}
}

// TestStageUndone: a NodeStageVolume that has failed leaves nothing attached: nobody takes back what it did.
func TestStageUndone(t *testing.T) {
	w := csitest.New()
	m := w.Machine("web-1", "")
	d, l := start(w, m), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
	if err := l.run(t, d, 0, published); err != nil {
		t.Fatal(err)
	}
	v, err := w.Cluster().Volume(t.Context(), "pvc-1")
	if err != nil {
		t.Fatal(err)
	}
	w.Write(v.ID)
	if err := l.run(t, d, published, staged); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
	if left := m.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestAttachUndone: what NodeStageVolume has attached and then cannot use is given up again; what was attached before is not, since
// somebody may use it. The line is the call of unstage in Node.attach.
func TestAttachUndone(t *testing.T) {
	block := blockOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	for name, tc := range map[string]struct {
		spoil func(m *csitest.Machine, l *life)
		code  codes.Code
	}{
		"its path is another's": {func(m *csitest.Machine, _ *life) { m.Steal("pvc-1") }, codes.FailedPrecondition},
		"it is a namesake's": {func(_ *csitest.Machine, l *life) {
			l.volume.VolumeId = strings.Replace(l.volume.GetVolumeId(), ".", ".9", 1)
		}, codes.NotFound},
	} {
		w := csitest.New()
		m := w.Machine("web-1", "")
		d, l := start(w, m), &life{capability: block}
		if err := l.run(t, d, 0, published); err != nil {
			t.Fatal(err)
		}
		tc.spoil(m, l)
		if err := l.run(t, d, published, staged); status.Code(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
		if left := m.Left(); len(left) > 0 {
			t.Errorf("%s: left: %v", name, left)
		}
	}
	w := csitest.New()
	m := w.Machine("web-1", "")
	d, l := start(w, m), &life{capability: block}
	if err := l.run(t, d, 0, shown); err != nil {
		t.Fatal(err)
	}
	m.Steal("pvc-1")
	if err := l.run(t, d, published, staged); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("staged again: %v", err)
	}
	if left := m.Left(); !slices.Contains(left, "device of pvc-1") {
		t.Errorf("a device that is in use was taken away; left: %v", left)
	}
}

// TestGrowthFails: a file system that cannot grow is mounted as it is, and the pod starts. The line is the one in mountStaged that
// logs and goes on.
func TestGrowthFails(t *testing.T) {
	w := csitest.New()
	m := w.Machine("web-1", "")
	d, l := start(w, m), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
	if err := l.run(t, d, 0, published); err != nil {
		t.Fatal(err)
	}
	m.Refuse("grow")
	if err := l.run(t, d, published, shown); err != nil {
		t.Errorf("a pod whose file system cannot grow: %v", err)
	}
	if m.Begun("grow") == 0 {
		t.Error("nobody tried to grow it")
	}
	if _, err := d.NodeExpandVolume(t.Context(), &spec.NodeExpandVolumeRequest{VolumeId: l.volume.GetVolumeId(), VolumePath: target}); err == nil {
		t.Error("who asks for the growth is told that there was one")
	}
}

// TestReadersOnly: while hosts have a volume as readers nobody else gets it for writing, through the driver or without it, and the
// other way round. A volume that several hosts write may be published read-only to some. The line is the case readers in
// use.access.
func TestReadersOnly(t *testing.T) {
	w := csitest.New()
	d := start(w, w.Machine("web-1", ""))
	made, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "pvc-1",
		VolumeCapabilities: []*spec.VolumeCapability{blockOf(spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetVolume().GetVolumeId()
	publish := func(node string, mode spec.VolumeCapability_AccessMode_Mode, readOnly bool) codes.Code {
		_, err := d.ControllerPublishVolume(t.Context(), &spec.ControllerPublishVolumeRequest{VolumeId: id, NodeId: csi.NodeID(node),
			VolumeCapability: blockOf(mode), Readonly: readOnly})
		return codeOf(err)
	}
	unpublish := func() {
		if _, err := d.ControllerUnpublishVolume(t.Context(), &spec.ControllerUnpublishVolumeRequest{VolumeId: id}); err != nil {
			t.Fatal(err)
		}
	}
	past := func() error { // as an NBD client attaches, which says that it shares
		_, err := w.Cluster().Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{Name: "pvc-1"}, Access: storage.AccessShared,
			Holder: storage.Holder{ID: "past-the-driver", Kind: storage.HolderHost}})
		return err
	}
	const readers, writers = spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	for _, node := range []string{"a", "b", "b"} {
		if code := publish(node, readers, false); code != codes.OK {
			t.Errorf("reader %s: %v", node, code)
		}
	}
	if code := publish("c", writers, false); code != codes.FailedPrecondition {
		t.Errorf("a writer beside readers: %v", code)
	}
	if code := publish("c", writers, true); code != codes.FailedPrecondition {
		t.Errorf("one of several writers beside readers, though it does not write itself: %v", code)
	}
	if err := past(); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("a writer past the driver: %v", err)
	}
	unpublish()
	if code := publish("a", writers, false); code != codes.OK {
		t.Error(code)
	}
	if code := publish("b", writers, true); code != codes.OK {
		t.Errorf("published read-only beside a writer: %v", code)
	}
	if code := publish("c", readers, false); code != codes.FailedPrecondition {
		t.Errorf("a reader beside a writer: %v", code)
	}
	if err := past(); err != nil {
		t.Errorf("another one who shares: %v", err)
	}
}

// TestReadOnlyClaim: a new volume that nobody may write to would never have a file system.
func TestReadOnlyClaim(t *testing.T) {
	for _, tc := range []struct {
		capability *spec.VolumeCapability
		code       codes.Code
	}{
		{mountOf(spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, ""), codes.InvalidArgument},
		{blockOf(spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY), codes.OK},
		{mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, ""), codes.OK},
	} {
		w := csitest.New()
		_, err := start(w, w.Machine("web-1", "")).CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "pvc-1",
			VolumeCapabilities: []*spec.VolumeCapability{tc.capability}})
		if status.Code(err) != tc.code {
			t.Errorf("%v: %v", tc.capability, err)
		}
	}
}

// TestProvisioning: a claim that the cluster could never hold gets OUT_OF_RANGE, and one that there is no space for now
// RESOURCE_EXHAUSTED. An orchestrator may take back a growth of either kind.
func TestProvisioning(t *testing.T) {
	w := csitest.New()
	w.Cluster().Edit(func(_ *[]api.Node, _ *[]api.Group, status *api.Status) { status.UsableBytes = 100 << 30 })
	d := start(w, w.Machine("web-1", ""))
	claim := func(name string, gib int64) (string, codes.Code) {
		r, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: name, CapacityRange: &spec.CapacityRange{RequiredBytes: gib << 30},
			VolumeCapabilities: []*spec.VolumeCapability{mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}})
		return r.GetVolume().GetVolumeId(), codeOf(err)
	}
	if _, code := claim("pvc-huge", 100<<10); code != codes.OutOfRange {
		t.Errorf("a claim of 100 TiB in a cluster of 100 GiB: %v", code)
	}
	var id string
	for i := range 10 {
		var code codes.Code
		if id, code = claim(fmt.Sprintf("pvc-%d", i), 99); code != codes.OK {
			t.Fatal(code)
		}
	}
	if _, code := claim("pvc-more", 99); code != codes.ResourceExhausted {
		t.Errorf("a claim beyond the provisioning limit: %v", code)
	}
	for _, gib := range []int64{101, 1 << 10} {
		_, err := d.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &spec.CapacityRange{RequiredBytes: gib << 30}})
		if codeOf(err) != codes.OutOfRange {
			t.Errorf("a growth to %d GiB: %v", gib, err)
		}
	}
	if _, code := claim("pvc-0", 99); code != codes.OK {
		t.Errorf("a claim that has its volume: %v", code)
	}
}

// TestSmallest: a volume for a file system is made as large as the file system needs, also without its type.
func TestSmallest(t *testing.T) {
	for fsType, want := range map[string]int64{"": 8 << 20, "ext4": 8 << 20, "xfs": 300 << 20} {
		w := csitest.New()
		r, err := start(w, w.Machine("web-1", "")).CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "pvc-1",
			CapacityRange:      &spec.CapacityRange{RequiredBytes: 1},
			VolumeCapabilities: []*spec.VolumeCapability{mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, fsType)}})
		if err != nil || r.GetVolume().GetCapacityBytes() != want {
			t.Errorf("%q: %d bytes, %v; want %d", fsType, r.GetVolume().GetCapacityBytes(), err, want)
		}
	}
}

// TestRefusedCharacter: a message names the character that was typed, not a byte of it.
func TestRefusedCharacter(t *testing.T) {
	for _, err := range []error{storage.CheckVolumeName("ä"), csi.CheckHostID("ä")} {
		if err == nil || !strings.Contains(err.Error(), "'ä'") {
			t.Errorf("%v", err)
		}
	}
}
