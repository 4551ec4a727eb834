//go:build e2e

package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// TestNodeLostForGood: one of four nodes dies and does not come back. Without a command its replicas are made anew on the others, under
// load; status says when that begins, that it goes on, and that it is done. Then another node may die. The lost node, back after
// all, is a member that holds nothing.
func TestNodeLostForGood(t *testing.T) {
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 4, Args: []string{"--repair-after", "20s", "--rebalance=false"}})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	victim := c.Node(1)
	data := writeOut(t, c.Node(0), 8)
	if err := c.CreateVolume(t.Context(), "busy", volumeBytes); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, c.Node(0), "busy")
	l.awaitMore(t, 200)
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	says := func(within time.Duration, what ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		text := ""
		if testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
			text = statusText(t, c)
			for _, w := range what {
				if !strings.Contains(text, w) {
					return false
				}
			}
			return true
		}) != nil {
			t.Fatalf("status does not say %q:\n%s", what, text)
		}
	}
	says(time.Minute, "node "+victim.Name, "down for", "(--repair-after 20s) its replicas are made anew on other nodes")
	says(2*time.Minute, "it holds no replica that the cluster counts on any more")
	whole := func() bool {
		groups, err := c.Groups(t.Context())
		return err == nil && !slices.ContainsFunc(groups, func(g *storagev1.Group) bool {
			return len(g.Replicas) != 3 || slices.ContainsFunc(g.Replicas, func(r *storagev1.Replica) bool {
				return r.Role != storagev1.ReplicaRole_REPLICA_ROLE_VOTER || !r.Online || r.NodeName == victim.Name
			})
		})
	}
	awaitText(t, "three voters on other nodes", func() string { return statusText(t, c) }, func(string) bool { return whole() })
	t.Logf("whole again %v after the node died", time.Since(died).Round(time.Millisecond))
	l.awaitMore(t, 200)
	other := c.Node(2)
	if err := other.Kill(); err != nil { // two of the first three nodes are gone now
		t.Fatal(err)
	}
	l.awaitMore(t, 200)
	readBack(t, c, data)
	for _, i := range []int{1, 2} {
		if err := c.StartNode(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	clustertest.WaitFull(t, c)
	awaitHealthy(t, c)
	l.end(t, victim, "busy")
	readBack(t, c, data)
	if !whole() {
		t.Errorf("a group has a replica on %s, which has nothing new to hold", victim.Name)
	}
}
