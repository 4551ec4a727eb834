//go:build e2e

package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// nodesOf returns the service Nodes of one node.
func nodesOf(t *testing.T, c *testcluster.Cluster, n *testcluster.Node) storagev1.NodesClient {
	t.Helper()
	conn, err := c.Conn(n)
	if err != nil {
		t.Fatal(err)
	}
	return storagev1.NewNodesClient(conn)
}

// TestDrain: one of four nodes is in maintenance for a moment, and leads nothing then; it is drained under load, and removed while it is up.
// Its plan says beforehand what moves. Nothing is lost, no group has fewer than three copies on the way, and the process ends by itself.
func TestDrain(t *testing.T) {
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 4, Args: []string{"--rebalance=false"}})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	data := writeOut(t, c.Node(0), 8)
	if err := c.CreateVolume(t.Context(), "busy", volumeBytes); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, c.Node(0), "busy")
	l.awaitMore(t, 200)
	victim, nodes := c.Node(1), nodesOf(t, c, c.Node(0))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	want := func(intent storagev1.NodeIntent, until *timestamppb.Timestamp) {
		t.Helper()
		n, err := nodes.Get(ctx, &storagev1.GetNodeRequest{Node: victim.Name})
		if err == nil {
			_, err = nodes.SetIntent(ctx, &storagev1.SetNodeIntentRequest{Id: n.GetNode().GetId(), Intent: intent, Until: until})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want(storagev1.NodeIntent_NODE_INTENT_MAINTENANCE, timestamppb.New(time.Now().Add(time.Hour)))
	awaitText(t, "the node to lead nothing", func() string { return warnings(t, c) }, func(text string) bool {
		n, err := nodes.Get(ctx, &storagev1.GetNodeRequest{Node: victim.Name})
		return err == nil && n.GetNode().GetLeaders() == 0 && strings.Contains(text, "in maintenance until")
	})
	want(storagev1.NodeIntent_NODE_INTENT_SERVE, nil)
	answer, err := nodes.Plan(ctx, &storagev1.PlanNodeRequest{Node: victim.Name, Action: storagev1.NodeAction_NODE_ACTION_DRAIN})
	if err != nil {
		t.Fatal(err)
	}
	plan := answer.GetPlan()
	on := func() (n int, fewest int) {
		groups, err := c.Groups(ctx)
		if err != nil {
			t.Fatal(err)
		}
		fewest = 9
		for _, g := range groups {
			voters := 0
			for _, r := range g.Replicas {
				if r.NodeName == victim.Name {
					n++
				}
				if r.Online && (r.Role == storagev1.ReplicaRole_REPLICA_ROLE_VOTER || r.Role == storagev1.ReplicaRole_REPLICA_ROLE_LEAVING) {
					voters++
				}
			}
			fewest = min(fewest, voters)
		}
		return n, fewest
	}
	held, _ := on()
	if held == 0 || len(plan.GetMoves()) != held || plan.GetRefused() != "" || slices.ContainsFunc(plan.GetMoves(), func(m *storagev1.NodeMove) bool { return m.GetTo() == 0 }) {
		t.Fatalf("it holds %d replicas; the plan is %v", held, plan)
	}
	want(storagev1.NodeIntent_NODE_INTENT_DRAIN, nil)
	begun, least := time.Now(), 9
	awaitText(t, "the node to be empty", func() string { return warnings(t, c) }, func(text string) bool {
		n, voters := on()
		least = min(least, voters)
		return n == 0 && strings.Contains(text, "node "+victim.Name+": it has drained")
	})
	t.Logf("%d replicas moved in %v", held, time.Since(begun).Round(time.Millisecond))
	if least < 3 {
		t.Errorf("a group had %d copies on the way", least)
	}
	if _, err := nodes.Remove(ctx, &storagev1.RemoveNodeRequest{Id: plan.GetId()}); err != nil {
		t.Fatal(err)
	}
	if err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool { return strings.Contains(victim.LogTail(10000), "was removed from the cluster") }); err != nil {
		t.Errorf("the node's process goes on: %v", err)
	}
	l.awaitMore(t, 200)
	readBack(t, c, data)
	l.end(t, c.Node(2), "busy")
}

// warnings is what status says that does not count against the cluster's health.
func warnings(t *testing.T, c *testcluster.Cluster) (text string) {
	s, err := c.Status(t.Context())
	if err != nil {
		return err.Error()
	}
	for _, w := range s.GetWarnings() {
		text += w.GetSubject() + ": " + w.GetText() + "\n"
	}
	return text
}
