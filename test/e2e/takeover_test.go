//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// Bounds of a takeover and of a reconnection with default settings.
const (
	takeover           = 2 * time.Second // while all nodes are up
	takeoverWithoutOne = 6 * time.Second // a frozen node's groups elect other leaders first
	reconnection       = 8 * time.Second // a dead node is suspect after 3 s
)

// dial opens an export through a node.
func dial(t *testing.T, n *testcluster.Node, export string) (*nbdclient.Client, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	client, err := nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: n.NBD, Export: export})
	if err == nil {
		t.Cleanup(func() { _ = client.Close() }) // closed by the test already, or the test failed
	}
	return client, err
}

func mustDial(t *testing.T, n *testcluster.Node, export string) *nbdclient.Client {
	t.Helper()
	client, err := dial(t, n, export)
	if err != nil {
		t.Fatalf("connect to %s through %s: %v", export, n.Name, err)
	}
	return client
}

func web(n string, takeOver bool) api.NewAttachment {
	return api.NewAttachment{Volume: storage.VolumeRef{Name: volumeName}, TakeOver: takeOver,
		Holder: storage.Holder{ID: "web-" + n, Kind: storage.HolderHost, Host: "web-" + n}}
}

// TestTakeover: what is attached exclusively is refused to others with who has it; a takeover ends it, without the old
// holder's doing, and what it sends from then on fails and says why.
func TestTakeover(t *testing.T) {
	c := startWithVolume(t, nil)
	cluster := apiClient(t, c)
	old := mustDial(t, c.Node(0), volumeName)
	p := random(4096)
	if err := old.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	want := "by NBD client 127.0.0.1 of node " + c.Node(0).Name
	if _, err := dial(t, c.Node(1), volumeName); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a second exclusive client is answered %v, want %q", err, want)
	}
	if _, err := cluster.Attach(t.Context(), web("1", false)); !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), want) ||
		!strings.Contains(err.Error(), "--take-over") {
		t.Errorf("a host is answered %v", err)
	}
	if v, err := cluster.Volume(t.Context(), volumeName); err != nil || len(v.Attachments) != 1 || v.Attachments[0].Holder.Kind != storage.HolderNBD {
		t.Errorf("the volume shows attachments %+v (%v)", v.Attachments, err)
	}

	begun := time.Now()
	a, err := cluster.Attach(t.Context(), web("1", true))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the takeover took %v", time.Since(begun).Round(time.Millisecond))
	if took := time.Since(begun); took > takeover {
		t.Errorf("the takeover took %v, at most %v are allowed", took, takeover)
	}
	if again, err := cluster.Attach(t.Context(), web("1", true)); err != nil || again.ID != a.ID {
		t.Errorf("the takeover once more: %+v, %v; want %+v", again, err, a)
	}
	err = old.WriteAt(t.Context(), random(4096), 0)
	if err == nil || !strings.Contains(err.Error(), "web-1") {
		t.Errorf("the old holder's write is answered %v, want who has the volume", err)
	}
	if err := old.ReadAt(t.Context(), make([]byte, 4096), 0); err == nil {
		t.Error("the old holder reads on")
	}

	if err := errors.Join(cluster.Detach(t.Context(), api.Detachment{Volume: a.VolumeRef(), HolderID: "web-1"}),
		cluster.Detach(t.Context(), api.Detachment{Volume: a.VolumeRef(), HolderID: "web-1"})); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if err := mustDial(t, c.Node(1), volumeName).ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the next holder does not read what was acknowledged (%v)", err)
	}
}

// TestTakeoverFromFrozenNode guards I2 with real processes: a node is frozen with its client's writes in its socket, others
// take the volume over and write, the node is thawed. Nothing old lands, and nothing is served under the old generation.
//
// Lines: the check of the generation in admit (replication/extent/table/volume.go) and the order of Controller.Attach, which
// fences before it answers (server/control/attach.go).
func TestTakeoverFromFrozenNode(t *testing.T) {
	c := startWithVolume(t, nil)
	cluster := apiClient(t, c)
	frozen, other := c.Node(0), c.Node(1)
	old := mustDial(t, frozen, volumeName)
	const blocks, step = 64, 4 << 20 // one in each extent: every group has some
	before, late, after := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096), bytes.Repeat([]byte{3}, 4096)
	for i := range int64(blocks) {
		if err := old.WriteAt(t.Context(), before, i*step); err != nil {
			t.Fatal(err)
		}
	}
	if err := frozen.Pause(); err != nil {
		t.Fatal(err)
	}
	var sent sync.WaitGroup
	answers := make([]error, blocks)
	for i := range int64(blocks) {
		sent.Go(func() { answers[i] = old.WriteAt(t.Context(), late, i*step) })
	}

	begun := time.Now()
	a, err := cluster.Attach(t.Context(), web("1", true))
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	t.Logf("the takeover from a frozen node took %v", took.Round(time.Millisecond))
	if took > takeoverWithoutOne {
		t.Errorf("it took %v, at most %v are allowed", took, takeoverWithoutOne)
	}
	if err := cluster.Detach(t.Context(), api.Detachment{Volume: a.VolumeRef(), HolderID: "web-1", Attachment: a.ID}); err != nil {
		t.Fatal(err)
	}
	next := mustDial(t, other, volumeName)
	for i := range int64(blocks) {
		if err := next.WriteAt(t.Context(), after, i*step); err != nil {
			t.Fatal(err)
		}
	}
	if err := frozen.Resume(); err != nil {
		t.Fatal(err)
	}
	sent.Wait()
	for i, err := range answers {
		if err == nil {
			t.Errorf("write %d of the frozen node's client was acknowledged after the takeover", i)
		}
	}
	t.Logf("the frozen node's client is told: %v", answers[0])
	if err := old.ReadAt(t.Context(), make([]byte, 4096), 0); err == nil {
		t.Error("the frozen node's client reads on")
	}
	got := make([]byte, 4096)
	for i := range int64(blocks) {
		if err := next.ReadAt(t.Context(), got, i*step); err != nil || !bytes.Equal(got, after) {
			t.Fatalf("block %d begins with %d (%v), want 3, the last acknowledged", i, got[0], err)
		}
	}
}

// TestReconnectThroughAnotherNode: the client of a node that died comes back through another one, on its own and soon.
func TestReconnectThroughAnotherNode(t *testing.T) {
	c := startWithVolume(t, nil)
	old := mustDial(t, c.Node(0), volumeName)
	p := random(4096)
	if err := old.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(0).Kill(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), reconnection)
	defer cancel()
	var next *nbdclient.Client
	var err error
	if testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
		next, err = dial(t, c.Node(1), volumeName)
		return err == nil
	}) != nil {
		t.Fatalf("not connected again in %v: %v", reconnection, err)
	}
	t.Logf("connected again after %v", time.Since(begun).Round(time.Millisecond))
	got := make([]byte, 4096)
	if err := next.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("what was acknowledged is not read (%v)", err)
	}
}

// TestShared: what one gateway has acknowledged, another one reads at once; a holder that is detached is out, the others
// go on.
func TestShared(t *testing.T) {
	c := startWithVolume(t, nil)
	cluster := apiClient(t, c)
	a, b := mustDial(t, c.Node(0), volumeName+"?access=shared"), mustDial(t, c.Node(1), volumeName+"?access=shared")
	got := make([]byte, 4096)
	for range 20 {
		for _, pair := range [][2]*nbdclient.Client{{a, b}, {b, a}} {
			p := random(4096)
			if err := pair[0].WriteAt(t.Context(), p, 8192); err != nil {
				t.Fatal(err)
			}
			if err := pair[1].ReadAt(t.Context(), got, 8192); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("one does not read what the other has written (%v)", err)
			}
		}
	}
	ro := mustDial(t, c.Node(0), volumeName+"?access=shared&read-only")
	if !ro.Info().ReadOnly || ro.WriteAt(t.Context(), got, 0) == nil {
		t.Error("a read-only connection writes")
	}
	if err := cluster.Detach(t.Context(), api.Detachment{Volume: storage.VolumeRef{Name: volumeName}, HolderID: "nbd:" + c.Node(0).Name}); err != nil {
		t.Fatal(err)
	}
	if err := a.WriteAt(t.Context(), random(4096), 8192); err == nil {
		t.Error("a holder that was detached writes on")
	}
	p := random(4096)
	if err := b.WriteAt(t.Context(), p, 8192); err != nil {
		t.Errorf("the other holder does not go on: %v", err)
	}
	if err := ro.ReadAt(t.Context(), got, 8192); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the third holder does not go on (%v)", err)
	}
}
