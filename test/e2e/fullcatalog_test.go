//go:build e2e && devices

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
)

// TestCatalogWithoutRoom: the catalog's log has to grow on a disk without a byte left: its leader's at first, which gives up its leadership, and
// follows no more until there is room. The process goes on, volumes are made by way of the others, nobody is told to give the node up, and
// with room it follows by itself. Of a cluster of one node, which nobody can follow, changes are refused meanwhile.
//
// Guards disk.await and errRefused of server/control, and for how long a refusal counts in withoutRoom.
func TestCatalogWithoutRoom(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) { catalogWithoutRoom(t, nodes) })
	}
}

func catalogWithoutRoom(t *testing.T, nodes int) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: nodes,
		Args: []string{"--segment-size=8MiB", "--free-segments=2", "--reserve=64MiB"}})
	n := c.Node(0) // made the cluster, and leads the catalog until something happens
	smallDisk(t, n.DataDir, 320<<20)
	t.Cleanup(func() { _ = n.Kill() }) // it runs no more, or the test failed
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	clustertest.WaitFull(t, c)
	pid := n.PID()
	fillFrom(t, n)
	made, refused := 0, 0
	create := func() bool {
		if err := c.CreateVolume(ctx, fmt.Sprintf("v%d", made), 1<<20); err != nil {
			refused++
			return false
		}
		made++
		return true
	}
	await := func(what string) {
		t.Helper()
		if err := testcluster.Poll(ctx, 10*time.Millisecond, func() bool {
			create()
			return strings.Contains(n.LogTail(1000), what)
		}); err != nil {
			t.Fatalf("made %d volumes, and the log of %s lacks %q\n%s", made, n.Name, what, n.LogTail(20))
		}
	}
	await("this node gives up its leadership")
	if nodes == 3 {
		await("this node waits for it, and neither follows nor votes")
		before := made
		if err := testcluster.Poll(ctx, 10*time.Millisecond, func() bool { return create() && made >= before+3 }); err != nil {
			t.Fatalf("made %d volumes by way of the others", made-before)
		}
	}
	t.Logf("%d volumes made, %d refused", made, refused)
	if nodes == 1 {
		awaitText(t, "a catalog without room", func() string { return advice(t, c) }, func(s string) bool {
			return strings.Contains(s, "its log finds no room on this node") && !strings.Contains(s, "bring up nodes")
		})
	}
	t.Logf("told: %s", advice(t, c))
	if n.PID() != pid || pid == 0 {
		t.Fatalf("the process has ended:\n%s", n.LogTail(20))
	}
	empty(t, n)
	clustertest.WaitFull(t, c)
	if err := testcluster.Poll(ctx, 10*time.Millisecond, func() bool {
		return c.CreateVolume(ctx, "last", 1<<20) == nil
	}); err != nil {
		t.Fatalf("with room no volume is made: %v\n%s", err, n.LogTail(20))
	}
	client := connect(t, n, "last")
	if n.PID() != pid {
		t.Errorf("the process has ended:\n%s", n.LogTail(20))
	}
	if err := errors.Join(client.Close(), c.Stop(ctx)); err != nil {
		t.Error(err)
	}
	if exit, out := runStoraged(t, "check", "--data-dir", n.DataDir); exit != 0 {
		t.Errorf("check of %s: exit code %d\n%s", n.Name, exit, out)
	}
}
