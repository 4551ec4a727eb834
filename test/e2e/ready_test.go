//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// TestReadyMeansCaughtUp: a node that was away while much was written is ready only when its replicas lag no more, and the
// cluster is well only then. (server.TestReadyMeansCaughtUp holds the bounds: here a fast disk may have caught up before anybody looks.)
func TestReadyMeansCaughtUp(t *testing.T) {
	c := startWithVolume(t, nil)
	awaitHealthy(t, c)
	away := c.Node(2)
	if err := away.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	writeOut(t, c.Node(0), 192)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.StartNode(ctx, 2); err != nil { // returns when the node is ready
		t.Fatal(err)
	}
	groups, err := c.Groups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		for _, r := range g.Replicas {
			if r.NodeName == away.Name && (r.LagEntries > 64 || r.Role != storagev1.ReplicaRole_REPLICA_ROLE_VOTER) {
				t.Errorf("%s is ready, and its replica of group %d is %v, %d entries behind", away.Name, g.Id, r.Role, r.LagEntries)
			}
		}
	}
	awaitHealthy(t, c)
	clustertest.WaitFull(t, c)
}
