package status

import (
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/placement"
)

// TestRepairIsTold: a node that is down is shown with what becomes of its replicas, and when.
func TestRepairIsTold(t *testing.T) {
	for _, c := range []struct {
		state  storage.NodeState
		age    time.Duration // of what node 2 said last; 0: it was not heard of
		after  time.Duration
		others storage.NodeState // of nodes 3 and 4
		free   bool              // no group counts on it
		all    bool              // all nodes hold the group
		want   string
	}{
		{storage.NodeUp, time.Second, 5 * time.Minute, storage.NodeUp, false, false, ""},
		{storage.NodeSuspect, 5 * time.Second, 5 * time.Minute, storage.NodeUp, false, false, ""},
		{storage.NodeDown, time.Minute, 0, storage.NodeUp, false, false, ""},
		{storage.NodeDown, time.Minute, 5 * time.Minute, storage.NodeUp, false, false, " for 1m0s; in 4m0s (--repair-after 5m0s) its replicas are made anew on other nodes"},
		{storage.NodeDown, 0, 5 * time.Minute, storage.NodeUp, false, false, "; once it has been so for 5m0s (--repair-after) its replicas are made anew on other nodes"},
		{storage.NodeDown, 6 * time.Minute, 5 * time.Minute, storage.NodeUp, false, false, " for 6m0s; its replicas are made anew on other nodes"},
		{storage.NodeDown, 6 * time.Minute, 5 * time.Minute, storage.NodeDown, false, false, "; its replicas are not made anew by themselves, because 3 of 4 nodes are down"},
		{storage.NodeDown, 6 * time.Minute, 5 * time.Minute, storage.NodeUp, true, false, "; it holds no replica that the cluster counts on"},
		{storage.NodeDown, 6 * time.Minute, 5 * time.Minute, storage.NodeUp, false, true, "; its replicas come back with it, or with a new node"},
	} {
		p := &picture{self: 1, repairAfter: c.after, reports: map[storage.NodeID]placement.Heard{}, groups: []storage.Group{{ID: 1}}}
		for id := storage.NodeID(1); id <= 4; id++ {
			n := storage.Node{ID: id, State: storage.NodeUp}
			switch {
			case id == 2:
				n.State = c.state
			case id > 2:
				n.State = c.others
			}
			p.nodes = append(p.nodes, n)
		}
		if c.age > 0 {
			p.reports[2] = placement.Heard{Age: c.age}
		}
		if !c.free {
			p.groups[0].Replicas = []storage.Replica{{Node: 2, Role: storage.RoleVoter}}
		}
		for id := storage.NodeID(1); id <= 4 && c.all; id++ {
			if id != 2 {
				p.groups[0].Replicas = append(p.groups[0].Replicas, storage.Replica{Node: id, Role: storage.RoleVoter})
			}
		}
		p.cluster.Replicas = 5
		if got := p.repair(api.Node{Node: p.nodes[1]}); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s, silent for %v: %q, want %q", c.state, c.age, got, c.want)
		}
	}
}
