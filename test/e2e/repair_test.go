//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// writeOut writes random bytes to a volume and returns them.
func writeOut(t *testing.T, n *testcluster.Node, mib int) []byte {
	t.Helper()
	data := random(mib << 20)
	client := connect(t, n, volumeName)
	for at := 0; at < len(data); at += 1 << 20 {
		if err := client.WriteAt(t.Context(), data[at:at+1<<20], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	return data
}

// readBack wants the bytes to be there, through every node that runs.
func readBack(t *testing.T, c *testcluster.Cluster, data []byte) {
	t.Helper()
	for _, n := range c.Nodes() {
		if n.PID() == 0 {
			continue
		}
		client := connect(t, n, volumeName)
		got := make([]byte, 1<<20)
		for at := 0; at < len(data); at += len(got) {
			if err := client.ReadAt(t.Context(), got, int64(at)); err != nil {
				t.Fatalf("read at %d through %s: %v", at, n.Name, err)
			}
			if !bytes.Equal(got, data[at:at+len(got)]) {
				t.Fatalf("the MiB at %d reads differently through %s", at, n.Name)
			}
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

// awaitHealthy waits until nothing is the matter with the cluster.
func awaitHealthy(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.WaitHealthy(ctx); err != nil {
		t.Fatal(err)
	}
}

// withoutEach stops every node in turn, but the named one, and reads everything through the others.
func withoutEach(t *testing.T, c *testcluster.Cluster, but int, data []byte) {
	t.Helper()
	for i, n := range c.Nodes() {
		if i == but {
			continue
		}
		if err := n.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		readBack(t, c, data)
		if err := c.StartNode(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		clustertest.WaitFull(t, c)
	}
}

// awaitRenewed returns when the node holds a replica of an incarnation that its cluster's growth did not give out.
func awaitRenewed(t *testing.T, c *testcluster.Cluster, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
		groups, err := c.Groups(ctx)
		if err != nil {
			return false
		}
		for _, g := range groups {
			for _, r := range g.Replicas {
				if r.NodeName == node && r.Incarnation > 3 { // 1 to 3 are those of the growth
					return true
				}
			}
		}
		return false
	}); err != nil {
		t.Fatal("no replica was made anew")
	}
}

// TestDamagedLog: a replica whose log lost an acknowledged record comes back as a new member by itself, with all data.
func TestDamagedLog(t *testing.T) {
	c := startWithVolume(t, nil)
	victim := c.Node(1)
	data := writeOut(t, c.Node(0), 24)
	if err := victim.Kill(); err != nil { // a clean stop would have written checkpoints, which need no log
		t.Fatal(err)
	}
	flipBit(t, victim.DataDir, data[10<<20+12345:][:64])
	exit, out := runStoraged(t, "check", "--data-dir", victim.DataDir)
	if exit != exitDamaged {
		t.Errorf("check finds nothing, exit code %d:\n%s", exit, out)
	}
	t.Logf("check says:\n%s", out)
	begun := time.Now()
	if err := c.StartNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	// Until the node has reported what it lost, the status is the one of before: wait for the new member, then for health.
	awaitRenewed(t, c, victim.Name)
	awaitHealthy(t, c)
	clustertest.WaitFull(t, c)
	t.Logf("whole again %v after the start", time.Since(begun).Round(time.Millisecond))
	if log := victim.LogTail(10000); !strings.Contains(log, "replica is damaged and stays out") {
		t.Error("the node's log does not say that a replica is damaged")
	}
	readBack(t, c, data)
	withoutEach(t, c, 1, data)
}

// TestDamagedOnlyCopy: without another copy the group stays out of service, the status says so, and the node is not ready.
func TestDamagedOnlyCopy(t *testing.T) {
	c := oneNode(t)
	data := writeOut(t, c.Node(0), 4)
	if err := c.Node(0).Kill(); err != nil {
		t.Fatal(err)
	}
	flipBit(t, c.Node(0).DataDir, data[1<<20+12345:][:64])
	if err := c.LaunchNode(0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var last *storagev1.ClusterStatus
	if testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
		s, err := c.Status(ctx)
		if err != nil {
			return false
		}
		last = s
		return s.Health == storagev1.Health_HEALTH_CRITICAL && slices.ContainsFunc(s.Reasons, func(r *storagev1.Reason) bool {
			return strings.Contains(r.Text, "no majority of the copies is left") && strings.Contains(r.NextStep, "restore")
		})
	}) != nil {
		t.Errorf("status says %v", last.GetReasons())
	}
}

// TestLostDisk: a node whose disk was replaced by an empty one joins as a new node; when the old one is removed, the new
// one takes over its replicas.
func TestLostDisk(t *testing.T) {
	c := startWithVolume(t, nil)
	victim := c.Node(2)
	data := writeOut(t, c.Node(0), 24)
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(t.Context(), 2); err == nil || !strings.Contains(err.Error(), "has this name already") {
		t.Errorf("a second node of the same name: %v", err)
	}
	removeNode(t, c, victim.Name)
	begun := time.Now()
	if err := c.StartNode(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	awaitHealthy(t, c)
	clustertest.WaitFull(t, c)
	t.Logf("whole again %v after the start of the new node", time.Since(begun).Round(time.Millisecond))
	readBack(t, c, data)
	withoutEach(t, c, 2, data)
}

// TestRemovedNodeComesBack: a node that was removed while it was away stops with exit code 2 and says what to do, instead of
// running on without a cluster.
func TestRemovedNodeComesBack(t *testing.T) {
	c := startWithVolume(t, nil)
	victim := c.Node(2)
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	removeNode(t, c, victim.Name)
	begun := time.Now()
	line := victim.CommandLine("")
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("a node that was removed runs on: %s", out)
	}
	t.Logf("it stopped after %v: %v", time.Since(begun).Round(time.Millisecond), err)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("it ended with %v, want exit code 2", err)
	}
	for _, want := range []string{victim.Name, "was removed from the cluster", "empty data directory and --join"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
}

// removeNode removes a node that is down from the cluster, as soon as node 0 agrees that it is.
func removeNode(t *testing.T, c *testcluster.Cluster, name string) {
	t.Helper()
	conn, err := c.Conn(c.Node(0))
	if err != nil {
		t.Fatal(err)
	}
	nodes := storagev1.NewNodesClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var removed error
	if err := testcluster.Poll(ctx, 200*time.Millisecond, func() bool { // refused until the node is seen to be down
		n, err := nodes.Get(ctx, &storagev1.GetNodeRequest{Node: name})
		if err != nil {
			removed = err
			return false
		}
		_, removed = nodes.Remove(ctx, &storagev1.RemoveNodeRequest{Id: n.Node.Id})
		return removed == nil
	}); err != nil {
		t.Fatalf("the node cannot be removed: %v", errors.Join(err, removed))
	}
}
