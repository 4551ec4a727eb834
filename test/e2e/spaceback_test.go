//go:build e2e && devices

package e2e

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/nbd/nbdclient"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

const (
	// usableAgain and givenBack bound how long it takes after a discard or a deletion of everything until the store says that its room
	// is free, and until its file system does.
	usableAgain, givenBack = time.Minute, 5 * time.Minute
	// keptFree is what stores keep in free segments: the reserve, and some for a burst (extent.toTrim).
	keptFree = 192 << 20
)

// TestSpaceComesBack: three stores are filled with what is written in order and with random overwrites of it. Then all is discarded, and
// the next time the volume is deleted. The room is usable again, and given back to the file systems.
func TestSpaceComesBack(t *testing.T) {
	const disk, size = 2 << 30, 768 << 20
	c := threeSmallDisks(t, disk, size)
	free, used := writable(t, c), inUse(t, c)
	t.Logf("empty: %d MiB can be written on the fullest, %d MiB of its file system are in use", free>>20, used>>20)
	client := connect(t, c.Node(0), volumeName)
	writeAll(t, client, size)
	t.Logf("written: %d MiB can be written, %d MiB in use", writable(t, c)>>20, inUse(t, c)>>20)
	begun := time.Now()
	if err := client.Trim(t.Context(), 0, size); err != nil {
		t.Fatal(err)
	}
	awaitSpaceBack(t, c, "discarded", begun, free, used)
	writeAll(t, client, size)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := c.Conn(c.Node(0))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if testcluster.Poll(ctx, 50*time.Millisecond, func() bool { // the gateway closes its session after its client has gone
		begun = time.Now()
		_, err = storagev1.NewVolumesClient(conn).Delete(ctx, &storagev1.DeleteVolumeRequest{Name: volumeName})
		return err == nil
	}) != nil {
		t.Fatal(err)
	}
	awaitSpaceBack(t, c, "deleted", begun, free, used)
}

// writeAll writes a volume from end to end, and single blocks of it at random.
func writeAll(t *testing.T, client *nbdclient.Client, size int64) {
	t.Helper()
	p := random(1 << 20)
	write := func(at int64, n int) {
		if err := client.WriteAt(t.Context(), p[:n], at); err != nil {
			t.Errorf("write at %d: %v", at, err)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for w := range int64(8) {
		wg.Go(func() {
			for at := w << 20; at < size && !t.Failed(); at += 8 << 20 {
				write(at, len(p))
			}
			for range 1000 {
				if write(rand.Int64N(size/4096)*4096, 4096); t.Failed() {
					return
				}
			}
		})
	}
}

// awaitSpaceBack waits until as much can be written as when the stores were empty, but for a twentieth, and then until their file systems
// have it back.
func awaitSpaceBack(t *testing.T, c *testcluster.Cluster, what string, begun time.Time, free, used int64) {
	t.Helper()
	const part = 20
	await := func(limit time.Duration, done func() bool) time.Duration {
		ctx, cancel := context.WithDeadline(t.Context(), begun.Add(limit))
		defer cancel()
		if testcluster.Poll(ctx, 100*time.Millisecond, done) != nil {
			t.Fatalf("%v after all was %s %d MiB can be written, %d when it was empty; %d MiB are in use, %d then",
				limit, what, writable(t, c)>>20, free>>20, inUse(t, c)>>20, used>>20)
		}
		return time.Since(begun).Round(100 * time.Millisecond)
	}
	t.Logf("%s: usable after %v", what, await(usableAgain, func() bool { return writable(t, c) >= free-free/part }))
	t.Logf("%s: given back after %v", what, await(givenBack, func() bool { return inUse(t, c) <= used+keptFree+free/part }))
}

// writable is what can still be written to the fullest store.
func writable(t *testing.T, c *testcluster.Cluster) (least int64) {
	t.Helper()
	conn, err := c.Conn(c.Node(0))
	if err != nil {
		t.Fatal(err)
	}
	r, err := storagev1.NewNodesClient(conn).List(t.Context(), &storagev1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	least = 1 << 62
	for _, n := range r.GetNodes() {
		for _, s := range n.GetStores() {
			least = min(least, s.GetFreeBytes())
		}
	}
	return least
}

// inUse is what is in use of the fullest file system.
func inUse(t *testing.T, c *testcluster.Cluster) (most int64) {
	t.Helper()
	for _, n := range c.Nodes() {
		var s unix.Statfs_t
		if err := unix.Statfs(n.DataDir, &s); err != nil {
			t.Fatal(err)
		}
		most = max(most, int64(s.Blocks-s.Bfree)*s.Bsize)
	}
	return most
}
