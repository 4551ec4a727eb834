//go:build e2e && devices

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
)

// TestGatewayKilledWhileAttaching: a gateway that is killed at any moment of an attach or a detach leaves nothing that keeps the next
// one from doing what it is asked for, and no loop device or mount behind.
func TestGatewayKilledWhileAttaching(t *testing.T) {
	c := startWithVolume(t, nil)
	g := startHost(t, c, "host-a")
	for _, ms := range []int{5, 20, 40, 60, 80, 100, 130, 160, 200, 300, 500} {
		after := time.Duration(ms) * time.Millisecond
		killDuring(t, g, after, func(ctx context.Context) error {
			_, err := g.Attach(ctx, host.Request{Volume: volumeName, Via: host.ViaFUSE})
			return err
		})
		a := g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
		disk, err := os.OpenFile(a.Device, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatalf("killed after %v: %v", after, err)
		}
		if err := writeBlocks(disk, 4, 1); err != nil {
			t.Errorf("killed after %v: %v", after, err)
		}
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
		killDuring(t, g, after, func(ctx context.Context) error { return g.Detach(ctx, volumeName, false) })
		if err := g.Detach(t.Context(), volumeName, false); err != nil {
			t.Fatalf("killed %v after a detach had begun: %v", after, err)
		}
		if left := leftovers(t, g); left != "" {
			t.Fatalf("killed after %v: left behind:\n%s", after, left)
		}
	}
}

// killDuring kills the gateway some time after a request was sent to it, and starts it again.
func killDuring(t *testing.T, g *hosttest.Host, after time.Duration, request func(context.Context) error) {
	t.Helper()
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), after+time.Second)
	defer cancel()
	go func() { defer close(done); _ = request(ctx) }() // it may come to its end, or not
	<-time.After(after)                                 // the moment, whatever it is, at which the gateway is killed
	g.End(t, syscall.SIGKILL)
	<-done
	g.Start(t)
	awaitText(t, "the gateway", func() string {
		list, err := g.Attachments(t.Context())
		return fmt.Sprintf("%+v %v", list, err)
	}, func(text string) bool {
		return !strings.Contains(text, string(host.StateConnecting)) && strings.HasSuffix(text, "<nil>")
	})
}

// TestGatewayRestartedUnderOlderKernel: where the kernel does not send requests again, because it is older than Linux 6.9, a gateway
// that is stopped in order and started is a pause, whatever its users ask for meanwhile; one that is killed may be an error.
func TestGatewayRestartedUnderOlderKernel(t *testing.T) {
	c := startWithVolume(t, nil)
	g := startHost(t, c, "host-a")
	a := g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	at := mounted(t, a)
	j := startJournal(t, filepath.Join(at, "journal"))
	for range 5 {
		j.await(t, 50)
		g.End(t, syscall.SIGTERM)
		run(t, "rm", "-f", filepath.Join(filepath.Dir(g.Socket), "state/mnt", volumeName+".resends")) // what an older kernel has not offered
		<-time.After(200 * time.Millisecond)                                                          // the journal asks for more, which nobody reads
		g.Start(t)
	}
	j.await(t, 50)
	checkJournal(t, g, at, j.end())
}

// leftovers returns the loop devices and mounts of a gateway.
func leftovers(t *testing.T, g *hosttest.Host) string {
	t.Helper()
	state := strings.TrimSuffix(g.Socket, "gateway.sock")
	var left []string
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file") // losetup would ask the gateways of other tests
	if err != nil {
		t.Fatal(err)
	}
	loops := ""
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // not bound any more
		}
		if name := strings.TrimSpace(string(text)); name != "/disk" {
			loops += f + ": " + name + "\n"
		} else if name := testcluster.LoopFile("/dev/" + strings.Split(f, "/")[3]); name != "" && (strings.HasPrefix(name, state) || strings.HasPrefix(state, name)) {
			left = append(left, f+": "+name+"\n")
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(loops + string(mounts)) {
		if strings.Contains(line, state) {
			left = append(left, line)
		}
	}
	return strings.Join(left, "")
}
