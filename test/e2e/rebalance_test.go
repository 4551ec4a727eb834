//go:build e2e

package e2e

import (
	"testing"

	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// TestNewNodeTakesReplicas: a fourth node joins three that hold data, and without a command a group moves one of its replicas there, under load. No
// group has fewer than three copies on the way, and nothing is lost.
func TestNewNodeTakesReplicas(t *testing.T) {
	c := clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: 4})
	for i := range 3 {
		if err := c.StartNode(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	awaitHealthy(t, c)
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	data := writeOut(t, c.Node(0), 8)
	if err := c.CreateVolume(t.Context(), "busy", volumeBytes); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, c.Node(0), "busy")
	l.awaitMore(t, 200)
	if err := c.StartNode(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	fourth, fewest := c.Node(3).Name, 9
	awaitText(t, "a group whose replica has moved to "+fourth, func() string { return statusText(t, c) }, func(string) bool {
		groups, err := c.Groups(t.Context())
		if err != nil {
			return false
		}
		moved := false
		for _, g := range groups {
			voters, there := 0, false
			for _, r := range g.Replicas {
				if r.Online && (r.Role == storagev1.ReplicaRole_REPLICA_ROLE_VOTER || r.Role == storagev1.ReplicaRole_REPLICA_ROLE_LEAVING) {
					voters++
				}
				there = there || r.NodeName == fourth && r.Role == storagev1.ReplicaRole_REPLICA_ROLE_VOTER
			}
			fewest = min(fewest, voters)
			moved = moved || there && len(g.Replicas) == 3
		}
		return moved
	})
	if fewest < 3 {
		t.Errorf("a group had %d copies on the way", fewest)
	}
	l.awaitMore(t, 200)
	l.end(t, c.Node(0), "busy")
	readBack(t, c, data)
}
