package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/gateway/volume"
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

// TestRefusedIsCritical writes to a node until it refuses, with compaction and without. Before that it warns or is degraded; once it
// refuses it is critical, and what it says of its room agrees; when the volume is gone all is well again.
func TestRefusedIsCritical(t *testing.T) {
	for _, compacts := range []bool{false, true} {
		t.Run(fmt.Sprintf("compacts %v", compacts), func(t *testing.T) {
			n := startNode(t, func(c *Config) {
				c.CapacityBytes, c.ReserveBytes, c.SegmentBytes, c.Compact = 128<<20, 1<<20, 2<<20, compacts
			})
			if _, err := n.admin.CreateVolume(t.Context(), api.NewVolume{Name: "data", SizeBytes: 1 << 30, Groups: 2, Overcommit: true}); err != nil {
				t.Fatal(err)
			}
			v, err := n.gateway.Open(t.Context(), "data", volume.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close(context.Background())
			look := func() api.Status {
				s, err := n.admin.Status(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			told := false
			data := bytes.Repeat([]byte{1}, 1<<20)
			for at := int64(0); err == nil; at += 1 << 20 {
				if at >= 256<<20 {
					t.Fatal("a store of 128 MiB takes 256 MiB")
				}
				err = v.WriteAt(t.Context(), data, at)
				if err == nil && !told && n.store.Space().Usage().Fill > 0.9 {
					until(t, "it is told of", func() bool { s := look(); told = len(s.Warnings) == 1 || s.Health == api.HealthDegraded; return told })
				}
			}
			if !errors.Is(err, storage.ErrNoSpace) {
				t.Fatal(err)
			}
			if !told {
				t.Error("nothing was said before it refused")
			}
			until(t, "the node that refuses is critical", func() bool { return look().Health == api.HealthCritical })
			s := look()
			if s.Fullest == nil || s.Fullest.FreeBytes >= 1<<20 || s.Fullest.Fill < 0.97 || s.FreeBytes >= 1<<20 {
				t.Errorf("it refuses, and says of its room %+v", s.Fullest)
			}
			v.Close(context.Background())
			if err := n.admin.DeleteVolume(t.Context(), "data", 0); err != nil {
				t.Fatal(err)
			}
			until(t, "all is well", func() bool { s := look(); return s.Health == api.HealthOK && len(s.Warnings) == 0 })
		})
	}
}
