package main

import (
	"encoding/json"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// TestUnknownIsLeftOut: what is not known is no zero for programs; what is known to be zero is.
func TestUnknownIsLeftOut(t *testing.T) {
	silent := api.Node{Node: storage.Node{ID: 2, Name: "b", State: storage.NodeUnknown}, Stores: []api.Store{{Store: storage.Store{CapacityBytes: 5}, State: api.StoreUnknown}}}
	idle := api.Node{Node: storage.Node{ID: 3, Name: "c", State: storage.NodeUp}, Version: "v1", Stores: []api.Store{{Store: storage.Store{CapacityBytes: 5}, State: api.StoreFull, UsedBytes: 5}}}
	leaderless := api.Group{ID: 1, Replicas: []api.Replica{{Replica: storage.Replica{Node: 1}, Progress: &api.Progress{}}}}
	led := api.Group{ID: 1, Leader: 1, Replicas: []api.Replica{{Replica: storage.Replica{Node: 1}}}}
	unread := api.Status{Age: -1}
	deaf := api.Status{Age: -1, NodesTotal: 3, CapacityBytes: 15, StoresUnknown: 3}
	some := api.Status{Age: time.Second, NodesTotal: 3, CapacityBytes: 15, FreeBytes: 5, StoresUnknown: 1}
	empty := api.Status{NodesTotal: 1, CapacityBytes: 5, UsedBytes: 5}
	for _, c := range []struct {
		name          string
		view          any
		absent, there []string
	}{
		{"node not heard", viewNode(silent), []string{"version", "replicas", "leaders", "used_bytes", "free_bytes", "seen_at"}, []string{"capacity_bytes"}},
		{"store not heard", viewNode(silent).Stores[0], []string{"used_bytes", "free_bytes"}, []string{"capacity_bytes"}},
		{"idle node", viewNode(idle), nil, []string{"version", "replicas", "leaders", "used_bytes", "free_bytes"}},
		{"full store", viewNode(idle).Stores[0], nil, []string{"used_bytes", "free_bytes"}},
		{"group without a leader", viewGroup(leaderless), []string{"term", "commit_index", "applied_index"}, []string{"leader"}},
		{"replica of it", viewGroup(leaderless).Replicas[0], []string{"lag_entries"}, nil},
		{"pull that begins", viewGroup(leaderless).Replicas[0].Progress, []string{"total_bytes", "started_at"}, []string{"done_bytes"}},
		{"group with a leader", viewGroup(led), nil, []string{"term", "commit_index", "applied_index"}},
		{"replica that does not lag", viewGroup(led).Replicas[0], nil, []string{"lag_entries"}},
		{"catalog that was not read", viewStatus(unread), []string{"nodes_total", "nodes_up", "groups_total", "groups_full", "groups_without_leader",
			"volumes", "provisioned_bytes", "capacity_bytes", "used_bytes", "free_bytes", "age_seconds", "stores_unknown"}, nil},
		{"old copy of the catalog", viewStatus(deaf), []string{"used_bytes", "free_bytes", "age_seconds"}, []string{"nodes_total", "capacity_bytes", "stores_unknown"}},
		{"one store not heard", viewStatus(some), nil, []string{"used_bytes", "free_bytes", "age_seconds", "stores_unknown"}},
		{"full cluster", viewStatus(empty), nil, []string{"used_bytes", "free_bytes", "volumes", "age_seconds"}},
		{"volume whose groups do not say", viewVolume(api.Volume{AllocatedBytes: -1}), []string{"allocated_bytes", "created_at"}, []string{"size_bytes"}},
		{"empty volume", viewVolume(api.Volume{Volume: storage.Volume{ID: storage.VolumeID(1)}}), nil, []string{"allocated_bytes"}},
	} {
		b, err := json.Marshal(c.view)
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(b, &fields); err != nil {
			t.Fatal(err)
		}
		for _, f := range c.absent {
			if v, ok := fields[f]; ok {
				t.Errorf("%s: %s is %s", c.name, f, v)
			}
		}
		for _, f := range c.there {
			if _, ok := fields[f]; !ok {
				t.Errorf("%s: %s is left out", c.name, f)
			}
		}
	}
}
