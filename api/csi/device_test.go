package csi_test

import (
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
