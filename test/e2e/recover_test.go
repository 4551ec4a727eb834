//go:build e2e

package e2e

import (
	"context"
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
// acknowledged, new nodes join, and every group has three copies again. One of the lost, which comes back with its old directory after
// all, is refused and changes nothing.
func TestTwoOfThreeLost(t *testing.T) {
	c := startWithVolume(t, nil)
	data := writeOut(t, c.Node(0), 8)
	left := c.Node(2)
	if exit, out := runStoraged(t, "recover", "--data-dir", left.DataDir, "--lost", "node1,node2", "--yes"); exit == 0 || !strings.Contains(out, "in use") {
		t.Errorf("recovery of a node that runs: exit code %d:\n%s", exit, out)
	}
	if err := left.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, out := runStoraged(t, "recover", "--data-dir", left.DataDir, "--lost", "node1,node2", "--yes"); exit == 0 || !strings.Contains(out, "other nodes run: node1, node2") {
		t.Errorf("recovery while a majority runs: exit code %d:\n%s", exit, out)
	}
	for _, i := range []int{0, 1} {
		if err := c.Node(i).Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if exit, out := runStoraged(t, "recover", "--data-dir", left.DataDir, "--lost", "node1", "--yes"); exit == 0 || !strings.Contains(out, "there is still a majority of everything") {
		t.Errorf("recovery without need: exit code %d:\n%s", exit, out)
	}
	if exit, out := runStoraged(t, "recover", "--data-dir", left.DataDir, "--lost", "node1,node2"); exit != exitUsage || !strings.Contains(out, "nothing was changed") {
		t.Errorf("recovery without --yes: exit code %d:\n%s", exit, out)
	}
	dry := recovered(t, left, "--lost", "node1,node2", "--dry-run")
	if !strings.Contains(dry, "lost for good: node1, node2") || strings.Count(dry, "becomes the only voter") != 8 {
		t.Errorf("the dry run says:\n%s", dry)
	}
	recovered(t, left, "--lost", "node1,node2", "--yes")
	old := filepath.Join(filepath.Dir(left.DataDir), "old")
	if err := os.Rename(c.Node(0).DataDir, old); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(1).Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	readBack(t, c, data)

	// A node of before comes back, at its old address.
	back := c.Node(0)
	if err := os.Rename(old, back.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := c.LaunchNode(0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool { return strings.Contains(back.LogTail(10000), "the cluster was recovered") }); err != nil {
		t.Errorf("a node of before is not told why it is refused: %v", err)
	}
	readBackFrom(t, left, data)
	if err := back.Kill(); err != nil {
		t.Fatal(err)
	}

	for _, i := range []int{0, 1} {
		if err := c.Node(i).Wipe(); err != nil {
			t.Fatal(err)
		}
		n := c.Node(i)
		if err := c.StartNodeBy(t.Context(), i, n.CommandLine(left.Peer)); err != nil {
			t.Fatal(err)
		}
	}
	clustertest.WaitFull(t, c)
	awaitHealthy(t, c)
	readBack(t, c, data)
	withoutEach(t, c, -1, data)
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

// TestTwoOfFourLost: of four nodes two are lost for good, with the majority of the catalog and of some groups. The recovery begins on one of
// the others and the last one follows: groups that have two voters left go on, those with one go on alone, and nothing is lost. A new
// node makes three copies of everything again.
func TestTwoOfFourLost(t *testing.T) {
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 4})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	data := writeOut(t, c.Node(0), 16)
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	first, second := c.Node(0), c.Node(3)
	out := recovered(t, first, "--lost", "node2,id:3", "--yes")
	token := regexp.MustCompile(`--follow (\S+)`).FindStringSubmatch(out)
	if token == nil || !strings.Contains(out, "now, on each other node that is left (node4)") {
		t.Fatalf("it does not say what the last node is to do:\n%s", out)
	}
	if err := c.LaunchNode(0); err != nil { // some of its groups wait for the other node, so it is not ready yet
		t.Fatal(err)
	}
	follows := recovered(t, second, "--follow", token[1], "--yes")
	if strings.Count(out+follows, "becomes the only voter") == 0 || !strings.Contains(out+follows, "go on as they are") {
		t.Errorf("no group goes on alone, or none goes on as it is")
	}
	if err := c.StartNode(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if err := first.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	readBack(t, c, data)
	if err := c.Node(1).Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNodeBy(t.Context(), 1, c.Node(1).CommandLine(first.Peer)); err != nil {
		t.Fatal(err)
	}
	clustertest.WaitFull(t, c)
	awaitHealthy(t, c)
	readBack(t, c, data)
	if err := first.Kill(); err != nil { // what began anew is not needed any more
		t.Fatal(err)
	}
	readBack(t, c, data)
}
