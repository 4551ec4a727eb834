//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// TestReadyMeansCaughtUp: a node that was away while much was written is ready only when its replicas lag no more, and the
// cluster is well only then. What it lacks are many small entries of one group: a few big ones are there before anybody looks.
func TestReadyMeansCaughtUp(t *testing.T) {
	const entries, near = 12_000, 2 * 64 // twice what readiness allows, for what else is committed meanwhile
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag})
	if err := c.CreateVolumeOver(t.Context(), volumeName, volumeBytes, 1); err != nil {
		t.Fatal(err)
	}
	awaitHealthy(t, c)
	away := c.Node(2)
	if err := away.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	writeSmall(t, c.Node(0), entries)
	commits := map[uint32]float64{}
	groups, err := c.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		for i := range 2 {
			commits[g.Id] = max(commits[g.Id], groupMetric(t, c.Node(i), "commit_index", g.Id))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.StartNode(ctx, 2); err != nil { // returns when the node is ready
		t.Fatal(err)
	}
	for id, commit := range commits {
		if applied := groupMetric(t, away, "commit_index", id) - groupMetric(t, away, "apply_lag_entries", id); applied < commit-near {
			t.Errorf("%s is ready, and its replica of group %d is at entry %.0f of %.0f", away.Name, id, applied, commit)
		}
	}
	awaitHealthy(t, c)
	clustertest.WaitFull(t, c)
	voters(t, c, away)
}

// voters wants a node to vote in all groups.
func voters(t *testing.T, c *testcluster.Cluster, n *testcluster.Node) {
	t.Helper()
	groups, err := c.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		for _, r := range g.Replicas {
			if r.NodeName == n.Name && r.Role != storagev1.ReplicaRole_REPLICA_ROLE_VOTER {
				t.Errorf("%s is %v in group %d", n.Name, r.Role, g.Id)
			}
		}
	}
}

// writeSmall writes so many blocks, each by a request of its own, many at a time.
func writeSmall(t *testing.T, n *testcluster.Node, blocks int64) {
	t.Helper()
	client := connect(t, n, volumeName)
	block := random(storage.BlockSize)
	const writers = 64
	var running sync.WaitGroup
	for w := range int64(writers) {
		running.Go(func() {
			for at := w; at < blocks; at += writers {
				if err := client.WriteAt(t.Context(), block, at*storage.BlockSize%volumeBytes); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
}

// groupMetric returns what a node's metrics say of its replica of a group.
func groupMetric(t *testing.T, n *testcluster.Node, what string, group uint32) float64 {
	t.Helper()
	return metric(metricsFrom(t, n), fmt.Sprintf("storage_replication_%s{group=%q}", what, fmt.Sprint(group)))
}
