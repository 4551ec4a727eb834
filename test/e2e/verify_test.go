//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// verify takes the steps of a verification as storagectl does, and returns the sum of what they have brought.
func verify(t *testing.T, c *testcluster.Cluster, volume string, rateBytes int64) *storagev1.VerifyVolumeResponse {
	t.Helper()
	conn, err := c.Conn(c.Node(0))
	if err != nil {
		t.Fatal(err)
	}
	sum := &storagev1.VerifyVolumeResponse{}
	for begun := time.Now(); !sum.Done; {
		got, err := storagev1.NewVolumesClient(conn).Verify(t.Context(), &storagev1.VerifyVolumeRequest{Name: volume, Id: sum.Id, Group: sum.Group, FromExtent: sum.FromExtent,
			RateBytes: rateBytes})
		if err != nil || time.Since(begun) > 2*time.Minute {
			t.Fatalf("after %v at group %d, extent %d: %v; %v", time.Since(begun), sum.Group, sum.FromExtent, err, got)
		}
		sum.Id, sum.Group, sum.FromExtent, sum.Done = got.Id, got.Group, got.FromExtent, got.Done
		sum.Bytes += got.Bytes
		sum.ComparedExtents += got.ComparedExtents
		sum.MendedBlocks += got.MendedBlocks
		sum.Findings = append(sum.Findings, got.Findings...)
		if len(sum.Findings) > 0 {
			break
		}
	}
	return sum
}

// TestVerify: bits flip in blocks at two nodes, where nobody reads them. A verification finds and mends them, while clients write to another
// volume; the next one finds all sound, also of a volume that is written to. With a node down it says which replica it could not ask.
func TestVerify(t *testing.T) {
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Args: []string{"--segment-size", "4MiB", "--scrub-interval", "0"}})
	for name, bytes := range map[string]int64{volumeName: volumeBytes, "busy": 8 << 20} {
		if err := c.CreateVolume(t.Context(), name, bytes); err != nil {
			t.Fatal(err)
		}
	}
	data := writeOut(t, c.Node(0), 24)
	l := startLoad(t, c.Node(0), "busy")
	l.awaitMore(t, 200)
	for _, i := range []int{1, 2} {
		flipBit(t, c.Node(i).DataDir, data[i<<20+123:][:64])
	}
	if v := verify(t, c, volumeName, 0); v.MendedBlocks != 2 || v.Bytes < 3*24<<20 || v.ComparedExtents < 6 || len(v.Findings) != 0 {
		t.Errorf("%v", v)
	}
	if v := verify(t, c, volumeName, 100<<20); v.MendedBlocks != 0 || len(v.Findings) != 0 {
		t.Errorf("again: %v", v)
	}
	if v := verify(t, c, "busy", 0); v.MendedBlocks != 0 || len(v.Findings) != 0 || v.ComparedExtents == 0 {
		t.Errorf("the one that is written to: %v", v)
	}
	l.awaitMore(t, 200)
	l.end(t, c.Node(0), "busy")
	readBack(t, c, data)
	down := c.Node(2)
	if err := down.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := verify(t, c, volumeName, 0)
	if len(v.Findings) != 1 || v.Findings[0].GetKind() != storagev1.VerifyFindingKind_VERIFY_FINDING_KIND_UNCHECKED || v.Findings[0].GetNodeName() != down.Name || v.Done {
		t.Errorf("with a node down: %v", v)
	}
}
