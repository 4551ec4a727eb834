//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// oneNode starts a cluster of one with a volume.
func oneNode(t *testing.T, args ...string) *testcluster.Cluster {
	t.Helper()
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 1, Args: args})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	return c
}

// random returns bytes that occur nowhere else.
func random(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	return p
}

// TestCheck: `storaged check` finds nothing in a good store, and the block in which one bit has turned over.
func TestCheck(t *testing.T) {
	c := oneNode(t)
	n := c.Node(0)
	exit, out := runStoraged(t, "check", "--data-dir", n.DataDir)
	if exit != exitOther || !strings.Contains(out, "in use") {
		t.Errorf("check of a running node: exit code %d:\n%s", exit, out)
	}
	p := random(1 << 20)
	client := connect(t, n, volumeName)
	if err := client.WriteAt(t.Context(), p, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(client.Close(), c.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	if exit, out = runStoraged(t, "check", "--data-dir", n.DataDir); exit != 0 || !strings.Contains(out, " 0 findings") {
		t.Errorf("check of a good store: exit code %d:\n%s", exit, out)
	}
	file := flipBit(t, n.DataDir, p[512<<10:][:64])
	exit, out = runStoraged(t, "check", "--data-dir", n.DataDir)
	if exit != exitDamaged || strings.Contains(out, " 0 findings") || !strings.Contains(strings.ToLower(out), "checksum") {
		t.Errorf("check of a store with a flipped bit in %s: exit code %d:\n%s", file, exit, out)
	}
	t.Logf("check says:\n%s", out)
}

// flipBit looks for bytes in the store's segments, and turns a bit of them over.
func flipBit(t *testing.T, dir string, what []byte) (file string) {
	t.Helper()
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
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte{b[at+5] ^ 0x10}, int64(at)+5)
		file = path
		return errors.Join(err, f.Close(), fs.SkipAll)
	})
	if file == "" {
		t.Fatalf("what was written is in no segment: %v", err)
	}
	return file
}

// TestFullStore: a full store answers ENOSPC, still reads and discards, and has room again after a discard and after
// a volume was deleted.
func TestFullStore(t *testing.T) {
	c := oneNode(t, "--capacity", "192MiB", "--reserve", "32MiB", "--segment-size", "8MiB", "--free-segments", "1")
	n := c.Node(0)
	client := connect(t, n, volumeName)
	first := random(1 << 20)
	if err := client.WriteAt(t.Context(), first, 0); err != nil {
		t.Fatal(err)
	}
	full := fill(t, client)
	t.Logf("full after %d MiB", full>>20)
	got := make([]byte, len(first))
	if err := client.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, first) {
		t.Errorf("a full store does not read what was written: %v", err)
	}
	if err := client.Trim(t.Context(), 0, volumeBytes); err != nil {
		t.Fatalf("discard on a full store: %v", err)
	}
	awaitRoom(t, client)

	fill(t, client)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	api := apiClient(t, c)
	deleteClosed(t, api, volumeName)
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	awaitRoom(t, connect(t, n, volumeName))
}

// fill writes from the second MiB on until there is no room, and returns where that was.
func fill(t *testing.T, client *nbdclient.Client) int64 {
	t.Helper()
	for at := int64(1 << 20); at < volumeBytes; at += 1 << 20 {
		err := client.WriteAt(t.Context(), random(1<<20), at)
		if errors.Is(err, storage.ErrNoSpace) {
			return at
		}
		if err != nil {
			t.Fatalf("write at %d: %v", at, err)
		}
	}
	t.Fatalf("%d bytes went into a store of less", volumeBytes)
	return 0
}

// awaitRoom waits until 64 MiB can be written.
func awaitRoom(t *testing.T, client *nbdclient.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	from := time.Now()
	for at := int64(0); at < 64<<20; at += 1 << 20 {
		var err error
		if testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
			err = client.WriteAt(ctx, random(1<<20), at)
			return !errors.Is(err, storage.ErrNoSpace)
		}) != nil || err != nil {
			t.Fatalf("no room after %v: write at %d: %v", time.Since(from), at, err)
		}
	}
	t.Logf("64 MiB written after %v", time.Since(from).Round(time.Millisecond))
}
