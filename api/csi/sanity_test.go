package csi_test

import (
	"context"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"

	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/csi/csitest"
	"github.com/storaged/storaged/api/hostfs"
	"github.com/storaged/storaged/internal/unixsocket"
)

// serve serves both services of a world at a socket, until the test ends.
func serve(t *testing.T, w *csitest.World, m *csitest.Machine) (address string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi") // t.TempDir's is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "csi.sock")
	l, err := unixsocket.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, csi.Config{Identity: csi.NewIdentity(csi.IdentityConfig{Name: csi.DefaultName, Version: "test", Topology: *topology}),
		Controller: csi.NewController(csi.ControllerConfig{Name: csi.DefaultName, Cluster: w.Client(), Topology: *topology}),
		Node:       csi.NewNode(csi.NodeConfig{Name: csi.DefaultName, Devices: m, Mounts: hostfs.InSlots(m.Mounts()), Topology: *topology})})
	return "unix://" + path
}

func run(t *testing.T, l net.Listener, config csi.Config) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := csi.NewServer(config).Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
}

var topology = flag.Bool("topology", false, "of TestSanity: whether the driver offers zones")

// TestSanityWithTopology is TestSanity with a driver that offers zones, in a process of its own: the suite runs once in one.
func TestSanityWithTopology(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSanity$", "-topology").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSanity runs the official suite on the fakes. test/csi runs it on a cluster and a kernel.
func TestSanity(t *testing.T) {
	w := csitest.New()
	m := w.Machine("web-1", "z1")
	config := sanity.NewTestConfig()
	config.Address = serve(t, w, m)
	dir := t.TempDir()
	config.TargetPath, config.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
	config.TestVolumeMutableParameters = map[string]string{"max-iops": "500", "max-bandwidth": "100Mi"}
	config.CheckPath = func(path string) (sanity.PathKind, error) {
		if m.Made(path) {
			return sanity.PathIsDir, nil
		}
		return sanity.PathIsNotFound, nil
	}
	sanity.Test(t, config)
	if left := m.Left(); len(left) > 0 {
		t.Errorf("the suite ended, and there is left: %v", left)
	}
}
