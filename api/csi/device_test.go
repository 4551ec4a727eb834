package csi_test

import (
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storage "github.com/storaged/storaged"
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
		h := w.Host("web-1", "")
		d, l := start(w, h), &life{capability: capability}
		if err := l.run(t, d, 0, staged); err != nil {
			t.Fatal(err)
		}
		h.Steal("pvc-1")
		if err := l.run(t, d, staged, shown); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%v: %v", capability, err)
		}
	}
}

// TestDeviceHasFailed: a device that answers errors is not shown to a pod.
func TestDeviceHasFailed(t *testing.T) {
	w := csitest.New()
	h := w.Host("web-1", "")
	d, l := start(w, h), &life{capability: blockOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)}
	if err := l.run(t, d, 0, staged); err != nil {
		t.Fatal(err)
	}
	h.Lose("pvc-1")
	if err := l.run(t, d, staged, shown); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
}

// TestHoldsData: a volume that was written raw is not formatted over.
func TestHoldsData(t *testing.T) {
	w := csitest.New()
	d, l := start(w, w.Host("web-1", "")), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
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
	h := w.Host("web-1", "")
	d, l := start(w, h), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
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
	if left := h.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
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
		_, err := start(w, w.Host("web-1", "")).CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "pvc-1",
			VolumeCapabilities: []*spec.VolumeCapability{tc.capability}})
		if status.Code(err) != tc.code {
			t.Errorf("%v: %v", tc.capability, err)
		}
	}
}

// TestSmallest: a volume for a file system is made as large as the file system needs, also without its type.
func TestSmallest(t *testing.T) {
	for fsType, want := range map[string]int64{"": 8 << 20, "ext4": 8 << 20, "xfs": 300 << 20} {
		w := csitest.New()
		r, err := start(w, w.Host("web-1", "")).CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "pvc-1",
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
