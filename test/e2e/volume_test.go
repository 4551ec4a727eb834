//go:build e2e

package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/internal/testcluster"
)

// apiClient connects to the API of all nodes.
func apiClient(t *testing.T, c *testcluster.Cluster) *client.Client {
	t.Helper()
	var endpoints []string
	for _, n := range c.Nodes() {
		endpoints = append(endpoints, n.API)
	}
	api, err := client.New(client.Config{Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Close(); err != nil {
			t.Error(err)
		}
	})
	return api
}

// deleteClosed deletes a volume whose last connection was closed a moment ago.
func deleteClosed(t *testing.T, api *client.Client, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var err error
	if testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
		err = api.DeleteVolume(ctx, name, 0)
		return !errors.Is(err, storage.ErrConflict)
	}) != nil || err != nil {
		t.Fatalf("delete of a volume that nobody uses: %v", err)
	}
}

// awaitConnections waits until the API shows so many clients of the volume: reports follow by a second.
func awaitConnections(t *testing.T, cluster *client.Client, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var last api.Volume
	if testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
		v, err := cluster.Volume(ctx, volumeName)
		last = v
		return err == nil && len(v.Connections) == want && v.Connections[0].Client != "" && v.Connections[0].NodeName == "node1"
	}) != nil {
		t.Errorf("%d connections are not shown: %+v", want, last.Connections)
	}
}

// TestVolumeInUse: a connected volume is not deleted; one that has grown is larger for the next connection, and the
// one that is there goes on.
func TestVolumeInUse(t *testing.T) {
	c := oneNode(t)
	cluster := apiClient(t, c)
	first := connect(t, c.Node(0), volumeName)
	p := random(4096)
	if err := first.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if err := cluster.DeleteVolume(t.Context(), volumeName, 0); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("delete of a connected volume: %v", err)
	} else {
		t.Logf("delete of a connected volume: %v", err)
	}
	if _, err := cluster.ResizeVolume(t.Context(), volumeName, api.NewSize{Bytes: volumeBytes / 2}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("shrink: %v", err)
	} else {
		t.Logf("shrink: %v", err)
	}
	if _, err := cluster.ResizeVolume(t.Context(), volumeName, api.NewSize{Bytes: 2 * volumeBytes}); err != nil {
		t.Fatalf("resize: %v", err)
	}
	second := connect(t, c.Node(0), volumeName)
	if size := second.Info().SizeBytes; size != 2*volumeBytes {
		t.Errorf("a new connection sees %d bytes, the volume has %d", size, 2*volumeBytes)
	}
	if err := second.WriteAt(t.Context(), p, 2*volumeBytes-4096); err != nil {
		t.Errorf("write into the new part: %v", err)
	}
	if err := first.WriteAt(t.Context(), p, 4096); err != nil {
		t.Errorf("write over the older connection: %v", err)
	}
	awaitConnections(t, cluster, 2)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	awaitConnections(t, cluster, 1)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	deleteClosed(t, cluster, volumeName)
}

// TestAllocatedBytes: every node tells what a volume holds, whoever leads its groups, also after all of them were killed and
// have read their logs again.
func TestAllocatedBytes(t *testing.T) {
	c := startWithVolume(t, nil)
	d := connect(t, c.Node(0), volumeName)
	const pieces, pieceBytes = 12, 64 << 10
	for i := range int64(pieces) { // each in an extent of its own
		if err := d.WriteAt(t.Context(), random(pieceBytes), i*storage.ExtentSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Trim(t.Context(), 0, pieceBytes/2); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	const want = pieces*pieceBytes - pieceBytes/2
	check := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for i, n := range c.Nodes() {
			one, err := client.New(client.Config{Endpoints: []string{n.API}})
			if err != nil {
				t.Fatal(err)
			}
			var shown, listed int64
			if testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
				v, err := one.Volume(ctx, volumeName)
				list, listErr := one.Volumes(ctx, api.VolumeFilter{}, "", 0)
				if err != nil || listErr != nil || len(list) != 1 {
					return false
				}
				shown, listed = v.AllocatedBytes, list[0].AllocatedBytes
				return shown == want && listed == want
			}) != nil {
				t.Errorf("%s, node %d shows %d bytes and lists %d, want %d", when, i+1, shown, listed, want)
			}
			if err := one.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	check("after the writes")
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	restartAll(t, c)
	check("after a restart")
}
