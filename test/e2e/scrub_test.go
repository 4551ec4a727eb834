//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// zeroSector makes the disk forget the sector of 512 bytes that begins within the first 512 of the bytes.
func zeroSector(t *testing.T, dir string, what []byte) {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".seg" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.Index(b, what)
		if at < 0 {
			return nil
		}
		found = true
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(make([]byte, 512), int64(at+511)&^511)
			_ = f.Close()
		}
		if err != nil {
			return err
		}
		return fs.SkipAll
	})
	if err != nil || !found {
		t.Fatalf("what was written is in a segment: %v; error %v", found, err)
	}
}

// scrubOf is what the cluster says of the scrub of a node's store.
func scrubOf(t *testing.T, c *testcluster.Cluster, name string) *storagev1.StoreScrub {
	t.Helper()
	conn, err := c.Conn(c.Node(0))
	if err != nil {
		t.Fatal(err)
	}
	n, err := storagev1.NewNodesClient(conn).Get(t.Context(), &storagev1.GetNodeRequest{Node: name})
	if err != nil {
		t.Fatal(err)
	}
	return n.GetNode().GetStores()[0].GetScrub()
}

// TestScrub: bits flip and sectors are lost on one disk of three while clients write and read. Nobody reads anything wrong, what is damaged
// is found and written anew within a pass, told once each, and in the end its segments are used again: storaged check finds the store
// sound.
func TestScrub(t *testing.T) {
	const flips, sectors = 6, 6
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Args: []string{"--segment-size", "4MiB", "--scrub-interval", "20s"}})
	for name, bytes := range map[string]int64{volumeName: volumeBytes, "busy": 8 << 20} {
		if err := c.CreateVolume(t.Context(), name, bytes); err != nil {
			t.Fatal(err)
		}
	}
	victim := c.Node(1)
	data := writeOut(t, c.Node(0), 24)
	l := startLoad(t, c.Node(0), "busy")
	l.awaitMore(t, 200)
	// Between two passes: what a pass reads half before the damage and half after, compaction of the segment may have healed from memory.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := scrubOf(t, c, victim.Name).GetLastPassAt()
	if err := testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
		s := scrubOf(t, c, victim.Name)
		return s.GetBegunAt() == nil && s.GetLastPassAt() != nil && !s.GetLastPassAt().AsTime().Equal(before.AsTime())
	}); err != nil {
		t.Fatal("no pass ends")
	}
	for i := range flips {
		flipBit(t, victim.DataDir, data[i<<20+123:][:64])
	}
	for i := range sectors {
		zeroSector(t, victim.DataDir, data[(flips+i)<<20+512:][:64])
	}
	begun := time.Now()
	if err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool { return scrubOf(t, c, victim.Name).GetMendedBlocks() >= flips+sectors }); err != nil {
		t.Fatalf("of %d blocks: %v", flips+sectors, scrubOf(t, c, victim.Name))
	}
	t.Logf("mended %v after the damage", time.Since(begun).Round(time.Millisecond))
	readBack(t, c, data)
	if err := testcluster.Poll(ctx, 200*time.Millisecond, func() bool { return scrubOf(t, c, victim.Name).GetDamagedSegments() == 0 }); err != nil {
		t.Fatalf("damaged segments stay: %v", scrubOf(t, c, victim.Name))
	}
	t.Logf("the damaged segments were emptied after %v", time.Since(begun).Round(time.Millisecond))
	l.awaitMore(t, 200)
	l.end(t, c.Node(2), "busy")
	awaitHealthy(t, c)
	if s := scrubOf(t, c, victim.Name); s.MendedBlocks != flips+sectors || s.LostBlocks != 0 || s.WaitingBlocks != 0 || s.DamagedPages != 0 || s.LastPassAt == nil {
		t.Errorf("in the end: %v", s)
	}
	log := victim.LogTail(1 << 20)
	if n := strings.Count(log, "was written anew, from another replica"); n != flips+sectors {
		t.Errorf("%d blocks were told of, %d were damaged", n, flips+sectors)
	}
	if err := victim.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, out := runStoraged(t, "check", "--data-dir", victim.DataDir); exit != 0 {
		t.Errorf("check: exit code %d:\n%s", exit, out)
	}
}
