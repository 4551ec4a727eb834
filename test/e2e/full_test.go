//go:build e2e && devices

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// smallDisk mounts an ext4 file system of its own at dir, until the test ends.
func smallDisk(t *testing.T, dir string, sizeBytes int64) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, sizeBytes), os.MkdirAll(dir, 0o750)); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", dir, err, out)
		}
	})
}

// fillUp writes a file until there is not one byte left on its file system.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 1 << 20; n > 0; {
		switch _, err := f.Write(make([]byte, n)); {
		case errors.Is(err, syscall.ENOSPC):
			n /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestFilledFromOutside: something else takes the last byte of the file system that a node's data lies on, catalog and all.
// Writes are answered with ENOSPC, reads go on, and so does all else when there is room again, in the same process.
func TestFilledFromOutside(t *testing.T) {
	c := clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: 1,
		Args: []string{"--segment-size=8MiB", "--free-segments=2", "--reserve=64MiB"}})
	n := c.Node(0)
	smallDisk(t, n.DataDir, 640<<20)
	t.Cleanup(func() { n.Kill() })
	if err := errors.Join(c.Start(t.Context()), c.CreateVolume(t.Context(), volumeName, volumeBytes)); err != nil {
		t.Fatal(err)
	}
	client := connect(t, n, volumeName)
	data := random(96 << 20)
	for at := 0; at < len(data); at += 32 << 20 {
		if err := client.WriteAt(t.Context(), data[at:at+32<<20], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	ballast := filepath.Join(n.DataDir, "ballast")
	fillUp(t, ballast)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	at, wrote := int64(len(data)), 0
	err := testcluster.Poll(ctx, 10*time.Millisecond, func() bool {
		err := client.WriteAt(ctx, data[:1<<20], at)
		if err == nil {
			wrote++
		} else if !errors.Is(err, storage.ErrNoSpace) {
			t.Fatalf("a write on a file system without a byte left: %v", err)
		}
		return err != nil
	})
	if err != nil {
		t.Fatalf("%d writes went onto a full file system: %v", wrote, err)
	}
	discardEverywhere(ctx, t, client, n, 32<<20, len(data))
	got := make([]byte, 32<<20)
	if err := client.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, data[:len(got)]) {
		t.Errorf("a full file system is not read as it was: %v", err)
	}
	resp, err := http.Get("http://" + n.HTTP + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("health: %s", resp.Status)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	awaitRoom(t, client)
	if err := c.CreateVolume(ctx, "after", volumeBytes); err != nil {
		t.Errorf("a new volume, with room again: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := n.Stop(ctx); err != nil {
		t.Errorf("the node did not end well: %v", err)
	}
	if exit, out := runStoraged(t, "check", "--data-dir", n.DataDir); exit != 0 {
		t.Errorf("check: exit code %d\n%s", exit, out)
	}
	fillUp(t, ballast)
	if err := c.LaunchNode(0); err != nil {
		t.Fatal(err)
	}
	awaitAnswer(t, n, "is full: remove what does not belong to this node")
	if err := errors.Join(os.Remove(ballast), n.WaitReady(ctx), n.Stop(ctx)); err != nil {
		t.Errorf("started on a full file system that has room again: %v", err)
	}
}

// awaitAnswer waits until a node that is not ready says why.
func awaitAnswer(t *testing.T, n *testcluster.Node, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	said := ""
	if testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
		resp, err := http.Get("http://" + n.HTTP + "/readyz")
		if err != nil {
			said = err.Error()
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		said = string(b)
		return err == nil && strings.Contains(said, want)
	}) != nil {
		t.Fatalf("%s says %q, want %q\n%s", n.Name, said, want, n.LogTail(20))
	}
}

// discardEverywhere discards a block here and there in a range, again and again. That wants entries in the log, these want
// checkpoints, which a full store writes every second, and those tables, which are flushed when they are a quarter of a MiB.
func discardEverywhere(ctx context.Context, t *testing.T, client *nbdclient.Client, n *testcluster.Node, from, end int) {
	t.Helper()
	const page = 64 * 4096 // of a table
	for round := range 12 {
		before := pagesWritten(t, n)
		for at := from; at < end; at += page {
			if err := client.Trim(ctx, int64(at+round*4096), 4096); err != nil {
				t.Fatalf("discard on a full file system: %v", err)
			}
		}
		look, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := testcluster.Poll(look, 50*time.Millisecond, func() bool { return pagesWritten(t, n) >= before+float64(end-from)/page/2 })
		cancel()
		if err != nil {
			t.Logf("checkpoints wait for room in round %d", round)
			return
		}
	}
}

// pagesWritten is how many pages of tables the node's checkpoints have written.
func pagesWritten(t *testing.T, n *testcluster.Node) (sum float64) {
	t.Helper()
	resp, err := http.Get("http://" + n.HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "storage_extent_checkpoint_pages_total{"); ok {
			v, err := strconv.ParseFloat(rest[strings.LastIndex(rest, " ")+1:], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}
