//go:build e2e

package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
)

// recovered runs `storaged recover` on a node that must end well.
func recovered(t *testing.T, n *testcluster.Node, args ...string) string {
	t.Helper()
	exit, out := runStoraged(t, append([]string{"recover", "--data-dir", n.DataDir}, args...)...)
	if exit != 0 {
		t.Fatalf("recover %v of %s: exit code %d:\n%s", args, n.Name, exit, out)
	}
	t.Logf("recover %v of %s:\n%s", args, n.Name, out)
	return out
}

// TestTwoOfThreeLost goes by the runbook: two of three nodes lose their disks for good. The third goes on alone with everything that was
// acknowledged, new nodes join, and every group has three copies again. Both of the lost come back with their old directories in between, a
// majority of before: they are refused, and change nothing of what goes on without them.
func TestTwoOfThreeLost(t *testing.T) {
	c := startWithVolume(t, nil)
	// With one of three down, what is acknowledged is on both others: the one that is left has it, too.
	if err := c.Node(1).Kill(); err != nil {
		t.Fatal(err)
	}
	data := writeOut(t, c.Node(0), 8)
	if err := c.StartNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	clustertest.WaitFull(t, c)
	left := c.Node(2)
	refusals(t, c, left)
	dry := recovered(t, left, "--lost", "node1,node2", "--dry-run")
	if !strings.Contains(dry, "lost for good: node1, node2") || strings.Count(dry, "becomes the only voter") < 8 {
		t.Errorf("the dry run says:\n%s", dry)
	}
	recovered(t, left, "--lost", "node1,node2", "--yes")
	if err := c.StartNode(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	readBackFrom(t, left, data)

	// A majority of before comes back, at its old addresses.
	leads := func() (n int) {
		for _, i := range []int{0, 1} {
			n += strings.Count(c.Node(i).LogTail(10000), "this node leads the catalog")
		}
		return n
	}
	led := leads()
	for _, i := range []int{0, 1} {
		if err := c.LaunchNode(i); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, i := range []int{0, 1} {
		told := func() bool { return strings.Contains(c.Node(i).LogTail(10000), "the cluster was recovered") }
		if err := testcluster.Poll(ctx, 100*time.Millisecond, told); err != nil {
			t.Errorf("%s is not told why it is refused: %v", c.Node(i).Name, err)
		}
	}
	if err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool { return leads() > led }); err != nil {
		t.Errorf("the majority of before does not lead: %v", err)
	}
	data = writeOut(t, left, 8)
	readBackFrom(t, left, data)
	for _, i := range []int{0, 1} {
		if err := errors.Join(c.Node(i).Kill(), c.Node(i).Wipe()); err != nil {
			t.Fatal(err)
		}
		if err := c.StartNodeBy(t.Context(), i, c.Node(i).CommandLine(left.Peer)); err != nil {
			t.Fatal(err)
		}
	}
	clustertest.WaitFull(t, c)
	awaitHealthy(t, c)
	readBack(t, c, data)
	withoutEach(t, c, -1, data)
}

// refusals tries what is no recovery of the node that is left, and ends with all nodes down.
func refusals(t *testing.T, c *testcluster.Cluster, left *testcluster.Node) {
	t.Helper()
	refused := func(want string, args ...string) {
		t.Helper()
		exit, out := runStoraged(t, append([]string{"recover", "--data-dir", left.DataDir}, args...)...)
		if exit == 0 || !strings.Contains(out, want) {
			t.Errorf("recover %v: exit code %d, want %q:\n%s", args, exit, want, out)
		}
	}
	refused("in use", "--lost", "node1,node2", "--yes")
	if err := left.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("other nodes run: node1, node2", "--lost", "node1,node2", "--yes")
	for _, i := range []int{0, 1} {
		if err := c.Node(i).Kill(); err != nil {
			t.Fatal(err)
		}
	}
	refused("there is still a majority of everything", "--lost", "node1", "--yes")
	refused("nothing was changed", "--lost", "node1,node2")
	refused("it is itself among the lost", "--lost", "node1,node3", "--yes")
	refused("have that name or id", "--lost", "node9", "--yes")
}

// readBackFrom is readBack through one node.
func readBackFrom(t *testing.T, n *testcluster.Node, data []byte) {
	t.Helper()
	client := connect(t, n, volumeName)
	got := make([]byte, len(data))
	for at := 0; at < len(data); at += 1 << 20 {
		if err := client.ReadAt(t.Context(), got[at:at+1<<20], int64(at)); err != nil {
			t.Fatalf("read at %d through %s: %v", at, n.Name, err)
		}
	}
	if string(got) != string(data) {
		t.Fatalf("what was written reads differently through %s", n.Name)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

// TestCatalogFromBackup goes by the runbook: the catalogs of all three nodes cannot be read any more. One begins anew with a backup that is
// older than the last change, the others follow, and all data is there. What was made after the backup is not, and its numbers are not
// given out again.
func TestCatalogFromBackup(t *testing.T) {
	c := startWithVolume(t, nil)
	data := writeOut(t, c.Node(0), 4)
	api := apiClient(t, c)
	backup, err := api.BackupCatalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "catalog.bak")
	if err := os.WriteFile(file, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateVolume(t.Context(), "later", volumeBytes); err != nil {
		t.Fatal(err)
	}
	later, err := api.Volume(t.Context(), "later")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		for _, name := range []string{"raft.db", "snapshots"} {
			if err := os.RemoveAll(filepath.Join(n.DataDir, "catalog", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := c.Node(0)
	if exit, out := runStoraged(t, "recover", "--data-dir", first.DataDir, "--force", "--yes"); exit == 0 || !strings.Contains(out, "--from") {
		t.Errorf("recovery with nothing to begin with: exit code %d:\n%s", exit, out)
	}
	out := recovered(t, first, "--force", "--from", file, "--yes")
	token := regexp.MustCompile(`--follow (\S+)`).FindStringSubmatch(out)
	if token == nil {
		t.Fatalf("it does not say what others follow:\n%s", out)
	}
	for _, i := range []int{1, 2} {
		recovered(t, c.Node(i), "--follow", token[1], "--yes")
	}
	restartAll(t, c)
	readBack(t, c, data)
	if err := c.CreateVolume(t.Context(), "later", volumeBytes); err != nil { // it is not known any more
		t.Fatal(err)
	}
	if v, err := api.Volume(t.Context(), "later"); err != nil || v.ID <= later.ID+1<<30 {
		t.Errorf("the volume that is made anew has id %s after %s, %v", v.ID, later.ID, err)
	}
	awaitHealthy(t, c)
	l := startLoad(t, c.Node(1), "later")
	l.awaitMore(t, 100)
	l.end(t, c.Node(2), "later")
}

// TestTwoOfFourLost: of four nodes two are lost for good, and with them the majority of the catalog and of all groups. The recovery begins on
// the one that has the replicas, and the last one, which had no vote and no replica, follows. Nothing is lost, and new nodes make three
// copies of everything again.
func TestTwoOfFourLost(t *testing.T) {
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 4})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	first, second := c.Node(0), c.Node(3)
	// With one of three down, what is acknowledged is on both others: the one that is left has it, too.
	if err := c.Node(1).Kill(); err != nil {
		t.Fatal(err)
	}
	data := writeOut(t, first, 32) // an extent in each group
	for _, i := range []int{0, 2, 3} {
		if err := c.Node(i).Kill(); err != nil {
			t.Fatal(err)
		}
	}
	out := recovered(t, first, "--lost", "node2,id:3", "--yes")
	token := regexp.MustCompile(`--follow (\S+)`).FindStringSubmatch(out)
	if token == nil || !strings.Contains(out, "now, on each other node that is left (node4)") {
		t.Fatalf("it does not say what the last node is to do:\n%s", out)
	}
	if strings.Count(out, "becomes the only voter") < 8 {
		t.Errorf("not all groups go on alone")
	}
	if err := c.LaunchNode(0); err != nil { // some of its groups wait for the other node, so it is not ready yet
		t.Fatal(err)
	}
	recovered(t, second, "--follow", token[1], "--yes")
	if err := c.StartNode(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if err := first.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	readBack(t, c, data)
	for _, i := range []int{1, 2} {
		if err := c.Node(i).Wipe(); err != nil {
			t.Fatal(err)
		}
		if err := c.StartNodeBy(t.Context(), i, c.Node(i).CommandLine(first.Peer)); err != nil {
			t.Fatal(err)
		}
	}
	clustertest.WaitFull(t, c)
	awaitHealthy(t, c)
	readBack(t, c, data)
	if err := first.Kill(); err != nil { // what began anew is not needed any more
		t.Fatal(err)
	}
	readBack(t, c, data)
}
