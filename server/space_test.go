package server

import (
	"errors"
	"fmt"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// TestOneFigureOfFreeSpace: every answer to how much can still be written is the same, the free space above the reserve: in the
// status, in the list of nodes, from which CSI's GetCapacity is made, and in the metrics. Requests are held to what the store has.
func TestOneFigureOfFreeSpace(t *testing.T) {
	const capacity, reserve = 1 << 30, 200 << 20
	n := startNode(t, func(c *Config) { c.CapacityBytes, c.ReserveBytes, c.ProvisionLimit = capacity, reserve, 200 })
	v := n.admin
	var figures string
	until(t, "all figures are the same", func() bool {
		space := n.store.Space()
		nodes, err := v.Nodes(t.Context())
		if err != nil || len(nodes) != 1 {
			t.Fatal(nodes, err)
		}
		status, err := v.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		families, err := n.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		metric := -1.0
		for _, f := range families {
			if f.GetName() == "storage_replication_store_free_bytes" {
				metric = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		want := space.FreeBytes - space.ReserveBytes
		figures = fmt.Sprintf("store %d, node %d, status %d, metric %.0f", want, nodes[0].FreeBytes(), status.FreeBytes, metric)
		return want > 0 && want < capacity-reserve && nodes[0].FreeBytes() == want && status.FreeBytes == want && metric == float64(want) &&
			nodes[0].Stores[0].State == api.StoreOK && status.StoresUnknown == 0
	})
	t.Log(figures)
	for name, want := range map[string]error{"fits": nil, "larger": storage.ErrInvalid} {
		bytes := map[string]int64{"fits": capacity, "larger": capacity + 4096}[name]
		if _, err := v.CreateVolume(t.Context(), api.NewVolume{Name: name, SizeBytes: bytes}); !errors.Is(err, want) {
			t.Errorf("a volume of %d bytes on a store of %d: %v", bytes, capacity, err)
		}
	}
}
