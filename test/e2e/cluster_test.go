//go:build e2e

package e2e

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
)

var storagedFlag = flag.String("storaged", "", "the storaged `binary`")

const (
	volumeName  = "e2e"
	volumeBytes = 256 << 20
	// Bounds of the longest stall that a client sees with default settings.
	stallAfterKill      = 2 * time.Second
	stallAfterPartition = 3 * time.Second
	stallAfterStop      = time.Second
)

// startWithVolume starts three nodes with one volume.
func startWithVolume(t *testing.T, network *testcluster.Network) *testcluster.Cluster {
	t.Helper()
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Network: network})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestGrowthUnderLoad: a cluster of one becomes a cluster of three while a client writes and sees no error.
func TestGrowthUnderLoad(t *testing.T) {
	c := clustertest.New(t, clustertest.Options{Binary: *storagedFlag})
	if err := c.StartNode(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, c.Node(0), volumeName)
	l.awaitMore(t, 200)
	for _, i := range []int{1, 2} {
		if err := c.StartNode(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	clustertest.WaitFull(t, c)
	l.awaitMore(t, 200)
	// With two of three copies elsewhere, the first node is not needed any more.
	l.end(t, c.Node(2), volumeName)
	if err := c.Node(0).Kill(); err != nil {
		t.Fatal(err)
	}
	l2 := startLoad(t, c.Node(1), volumeName)
	l2.awaitMore(t, 100)
	l2.end(t, c.Node(2), volumeName)
}

// TestKillAnyNode: whichever node dies, a client of another sees no error and no stall beyond the bound.
func TestKillAnyNode(t *testing.T) {
	c := startWithVolume(t, nil)
	for victim := range c.Nodes() {
		t.Run(c.Node(victim).Name, func(t *testing.T) {
			gateway, other := c.Node((victim+1)%3), c.Node((victim+2)%3)
			l := startLoad(t, gateway, volumeName)
			l.awaitMore(t, 100)
			if err := c.Node(victim).Kill(); err != nil {
				t.Fatal(err)
			}
			checkStall(t, l.awaitMore(t, 500), stallAfterKill)
			l.end(t, other, volumeName)
			if err := c.StartNode(t.Context(), victim); err != nil {
				t.Fatal(err)
			}
			clustertest.WaitFull(t, c)
		})
	}
}

// TestFreezeAnyNode: the same with a node that is stopped and goes on later, with answers it had not read.
func TestFreezeAnyNode(t *testing.T) {
	c := startWithVolume(t, nil)
	for victim := range c.Nodes() {
		t.Run(c.Node(victim).Name, func(t *testing.T) {
			l := startLoad(t, c.Node((victim+1)%3), volumeName)
			l.awaitMore(t, 100)
			if err := c.Node(victim).Pause(); err != nil {
				t.Fatal(err)
			}
			checkStall(t, l.awaitMore(t, 500), stallAfterPartition)
			if err := c.Node(victim).Resume(); err != nil {
				t.Fatal(err)
			}
			l.awaitMore(t, 200)
			clustertest.WaitFull(t, c)
			l.end(t, c.Node(victim), volumeName)
		})
	}
}

func checkStall(t *testing.T, longest, bound time.Duration) {
	t.Helper()
	t.Logf("longest request %v", longest.Round(time.Millisecond))
	if longest > bound {
		t.Errorf("the longest request took %v, at most %v are allowed", longest, bound)
	}
}

// TestRestart: all nodes stop cleanly in time and start again with everything; leaders are spread again.
func TestRestart(t *testing.T) {
	c := startWithVolume(t, nil)
	l := startLoad(t, c.Node(0), volumeName)
	l.awaitMore(t, 300)
	l.end(t, c.Node(1), volumeName)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Fatalf("a clean shutdown takes at most 10 s: %v", err)
	}
	restartAll(t, c)
	l.verifyAcknowledged(t, c.Node(2), volumeName)
	awaitSpread(t, c)
}

// restartAll starts all nodes at once: none is ready alone.
func restartAll(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	errs := make(chan error)
	for i := range c.Nodes() {
		go func() { errs <- c.StartNode(t.Context(), i) }()
	}
	for range c.Nodes() {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	clustertest.WaitFull(t, c)
}

// awaitSpread wants every node to lead its share of the groups, give or take one.
func awaitSpread(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var leads map[string]int
	err := testcluster.Poll(ctx, 200*time.Millisecond, func() bool {
		groups, err := c.Groups(ctx)
		if err != nil {
			return false
		}
		if leads, err = c.Leaders(ctx); err != nil {
			return false
		}
		share := len(groups) / len(c.Nodes())
		for _, n := range c.Nodes() {
			if leads[n.Name] < share || leads[n.Name] > share+1 {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Errorf("leaders are not spread: %v", leads)
	}
}

// TestLossOfPower: all nodes are killed at once under load; everything acknowledged is there afterwards.
func TestLossOfPower(t *testing.T) {
	c := startWithVolume(t, nil)
	l := startLoad(t, c.Node(0), volumeName)
	l.awaitMore(t, 500)
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	l.stop()
	<-l.done
	restartAll(t, c)
	l.verifyAcknowledged(t, c.Node(1), volumeName)
}

// TestStopUnderLoad: a node that is told to stop ends within ten seconds, with leaderships handed over: a client of
// another node sees a short pause at most, and one of the node itself is told that it ends.
func TestStopUnderLoad(t *testing.T) {
	c := startWithVolume(t, nil)
	awaitSpread(t, c)
	victim := c.Node(1)
	l := startLoad(t, c.Node(0), volumeName)
	if err := c.CreateVolume(t.Context(), "own", volumeBytes); err != nil {
		t.Fatal(err)
	}
	own := startLoad(t, victim, "own")
	l.awaitMore(t, 200)
	own.awaitMore(t, 100)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	from := time.Now()
	if err := victim.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped after %v", time.Since(from).Round(time.Millisecond))
	checkStall(t, l.awaitMore(t, 300), stallAfterStop)
	<-own.done
	own.verifyAcknowledged(t, c.Node(2), "own")
	l.end(t, c.Node(2), volumeName)
}
