//go:build e2e && devices

package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/nbd/nbdclient"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// threeSmallDisks starts three nodes that compact, each on a file system of its own, with a volume that all of them hold.
func threeSmallDisks(t *testing.T, sizeBytes, volumeBytes int64) *testcluster.Cluster {
	t.Helper()
	c := clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: 3,
		Args: []string{"--segment-size=8MiB", "--free-segments=2", "--reserve=128MiB", "--compact"}})
	for _, n := range c.Nodes() {
		smallDisk(t, n.DataDir, sizeBytes)
		t.Cleanup(func() { _ = n.Kill() }) // it runs no more, or the test failed
	}
	if err := errors.Join(c.Start(t.Context()), c.CreateVolume(t.Context(), volumeName, volumeBytes)); err != nil {
		t.Fatal(err)
	}
	clustertest.WaitFull(t, c)
	return c
}

// fillFrom takes the room of a node's file system with a file of somebody else: most of it at once, the rest byte by byte.
func fillFrom(t *testing.T, n *testcluster.Node) (ballast string) {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(n.DataDir, &s); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(n.DataDir, "large")
	f, err := os.Create(large)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(s.Bavail)*s.Bsize*3/4), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	fillUp(t, filepath.Join(n.DataDir, "rest"))
	return large
}

func empty(t *testing.T, n *testcluster.Node) {
	t.Helper()
	if err := errors.Join(os.Remove(filepath.Join(n.DataDir, "large")), os.Remove(filepath.Join(n.DataDir, "rest"))); err != nil {
		t.Fatal(err)
	}
}

// advice fails the test if anybody is told to give up a disk that is full, and returns what is told.
func advice(t *testing.T, c *testcluster.Cluster) string {
	t.Helper()
	s, err := c.Status(t.Context())
	if err != nil {
		return "status: " + err.Error()
	}
	var lines []string
	for _, r := range s.GetReasons() {
		line := r.GetSubject() + ": " + r.GetText() + "; " + r.GetNextStep()
		for _, word := range []string{"node remove", "lost", "replace", "empty data directory"} {
			if strings.Contains(line, word) {
				t.Errorf("of a full disk people are told: %s", line)
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// TestOneDiskOfThreeFilled: a file of somebody else takes the last byte on one node's disk, under load. The others go on, and no client
// sees an error; nor when the node is killed and started on its full disk, where it says what it waits for. With room it is back by
// itself. Then all disks are filled: writes are refused or wait, reads go on, and with room all do.
func TestOneDiskOfThreeFilled(t *testing.T) {
	c := threeSmallDisks(t, 640<<20, 64<<20)
	l := startLoad(t, c.Node(0), volumeName)
	l.awaitMore(t, 300)
	n := c.Node(2)
	fillFrom(t, n)
	told := func() string { return advice(t, c) }
	awaitText(t, "a disk that others fill", told, func(s string) bool {
		return strings.Contains(s, "fill the disk of node "+n.Name) && strings.Contains(s, "remove what does not belong")
	})
	t.Logf("filled: the slowest of 1000 requests took %v", l.awaitMore(t, 1000))
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed: the slowest of 300 requests took %v", l.awaitMore(t, 300))
	if err := c.LaunchNode(2); err != nil {
		t.Fatal(err)
	}
	awaitAnswer(t, n, "is full: remove what does not belong to this node")
	conn, err := c.Conn(n)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := storagev1.NewClusterClient(conn).Status(t.Context(), &storagev1.GetStatusRequest{}); err == nil || !strings.Contains(err.Error(), "is full") {
		t.Errorf("asked itself, the node says: %v", err)
	}
	awaitText(t, "a node that cannot begin", told, func(s string) bool {
		return strings.Contains(s, "it runs, and cannot begin") && strings.Contains(s, "make room on that file system")
	})
	l.awaitMore(t, 300)
	empty(t, n)
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	clustertest.WaitFull(t, c)
	l.awaitMore(t, 300)
	l.end(t, n, volumeName)

	if err := c.CreateVolume(t.Context(), "more", 64<<20); err != nil {
		t.Fatal(err)
	}
	writer, reader := connect(t, c.Node(0), "more"), connect(t, c.Node(1), volumeName)
	for _, n := range c.Nodes() {
		fillFrom(t, n)
	}
	t.Logf("all disks filled: %v", writeUntilRefused(t, writer))
	l.read(t, reader, c.Node(1))
	awaitText(t, "disks that others fill", told, func(s string) bool { return strings.Contains(s, "writes are refused where no majority") })
	for _, n := range c.Nodes() {
		empty(t, n)
	}
	awaitRoom(t, writer)
	clustertest.WaitFull(t, c)
	if err := errors.Join(writer.Close(), reader.Close(), c.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		if exit, out := runStoraged(t, "check", "--data-dir", n.DataDir); exit != 0 {
			t.Errorf("check of %s: exit code %d\n%s", n.Name, exit, out)
		}
	}
}

// writeUntilRefused writes until a write is refused for want of room, or waits for long.
func writeUntilRefused(t *testing.T, client *nbdclient.Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for at := int64(0); ; at = (at + 1<<20) % (64 << 20) {
		err := client.WriteAt(ctx, random(1<<20), at)
		if err != nil && !errors.Is(err, storage.ErrNoSpace) && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a write with all disks full: %v", err)
		}
		if err != nil {
			return err
		}
	}
}
