//go:build e2e && devices && netns

package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
)

// TestHostCutOff: a device is removed by force from a host that is cut off from the cluster, under a writer. The command says that the
// cluster was not told, and nothing of the device is left. Another host takes the volume over. When the first one is back, its gateway
// gives up what it had by itself, and takes nothing away from the other.
func TestHostCutOff(t *testing.T) {
	network, err := testcluster.NewNetwork(4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	c := startWithVolume(t, network)
	// Its network only: devices and mounts are this machine's.
	namespace := network.Prefix(3)
	cut := hosttest.Start(t, c, hosttest.Options{Binary: *storagedFlag, Name: "host-a", Prefix: []string{"nsenter", "--net=/run/netns/" + namespace[len(namespace)-1]}})
	other := startHost(t, c, "host-b")
	a := cut.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	disk, err := os.OpenFile(a.Device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = disk.Close() }()
	if err := writeBlocks(disk, 8, 1); err != nil {
		t.Fatal(err)
	}
	if err := network.Isolate(3); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- writeBlocks(disk, 8, 2) }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // that of storagectl
	defer cancel()
	if err := cut.Detach(ctx, volumeName, true); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "its device is removed") {
		t.Errorf("a forced detach is answered %v", err)
	}
	if <-wrote == nil {
		t.Error("what was written to the device meanwhile sees no error")
	}
	_ = disk.Close()
	if left := leftovers(t, cut); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	b := other.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE, TakeOver: true})
	if err := network.Heal(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var list []host.Attachment
	if testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
		list, err = cut.Attachments(ctx)
		return err == nil && len(list) == 0
	}) != nil {
		t.Errorf("the host that is back still has %+v (%v)", list, err)
	}
	clustertest.WaitFull(t, c)
	second, err := os.OpenFile(b.Device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if err := writeBlocks(second, 8, 3); err != nil {
		t.Errorf("the host that has taken over: %v", err)
	}
}
