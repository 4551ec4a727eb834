package csi_test

import (
	"errors"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/csi/csitest"
)

// TestCapacity: what the driver says is available is made from FREE of the nodes; when no store was heard it is not known, which is
// another answer than none.
func TestCapacity(t *testing.T) {
	w := csitest.New()
	d := start(w, w.Machine("web-1", ""))
	nodes, err := w.Cluster().Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	answer, err := d.GetCapacity(t.Context(), &spec.GetCapacityRequest{})
	if err != nil || answer.GetAvailableCapacity() != nodes[0].FreeBytes() { // three copies on three nodes that are alike
		t.Errorf("%d bytes are available, each of three nodes has %d: %v", answer.GetAvailableCapacity(), nodes[0].FreeBytes(), err)
	}
	for _, state := range []api.StoreState{api.StoreFull, api.StoreFailed} { // the next write is refused, whatever is free
		w.Cluster().Edit(func(nodes *[]api.Node, _ *[]api.Group, _ *api.Status) { (*nodes)[2].Stores[0].State = state })
		if answer, err := d.GetCapacity(t.Context(), &spec.GetCapacityRequest{}); err != nil || answer.GetAvailableCapacity() != 0 {
			t.Errorf("one of three stores is %s, and %d bytes are available: %v", state, answer.GetAvailableCapacity(), err)
		}
	}
	w.Cluster().Edit(func(nodes *[]api.Node, _ *[]api.Group, s *api.Status) {
		for i := range *nodes {
			store := &(*nodes)[i].Stores[0]
			store.State, store.UsedBytes, store.FreeBytes = api.StoreUnknown, 0, 0
		}
		s.StoresUnknown, s.UsedBytes, s.FreeBytes = 3, 0, 0
	})
	if answer, err := d.GetCapacity(t.Context(), &spec.GetCapacityRequest{}); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("no store was heard, and the answer is %v, %v", answer, err)
	}
}

// TestOldAnswer: a volume whose name was another one's before is not said not to exist, because the node that was asked knows
// only the one before.
func TestOldAnswer(t *testing.T) {
	w := csitest.New()
	d := start(w, w.Machine("web-1", ""))
	v, err := w.Cluster().CreateVolume(t.Context(), api.NewVolume{Name: "web", SizeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	later := "web." + (v.ID + 1).String()
	if _, err := d.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: later}); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("asked for a volume that got the name later: %v", err)
	}
}
