//go:build e2e

package csi

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"

	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/hostclient"
	"github.com/storaged/storaged/api/hostfs"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/unixsocket"
)

var (
	binary   = flag.String("storaged", "", "the storaged binary")
	topology = flag.Bool("topology", false, "whether the driver offers zones")
)

// TestSanity: the suite passes, and nothing is left mounted or attached.
func TestSanity(t *testing.T) {
	cluster := clustertest.Start(t, clustertest.Options{Binary: *binary})
	dir, err := os.MkdirTemp("", "csi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var endpoints []string
	for _, n := range cluster.Nodes() {
		endpoints = append(endpoints, n.API)
	}
	gateway := startGateway(t, dir, endpoints)
	api, err := client.New(client.Config{Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { api.Close() })
	path := filepath.Join(dir, "csi.sock")
	serve(t, path, csi.Config{Identity: csi.NewIdentity(csi.IdentityConfig{Name: csi.DefaultName, Version: "test", Topology: *topology}),
		Controller: csi.NewController(csi.ControllerConfig{Name: csi.DefaultName, Cluster: api, Topology: *topology}),
		Node:       csi.NewNode(csi.NodeConfig{Name: csi.DefaultName, Devices: gateway, Mounts: hostfs.New(""), Topology: *topology})})

	config := sanity.NewTestConfig()
	config.Address = "unix://" + path
	config.TargetPath, config.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
	config.TestVolumeSize, config.TestVolumeExpandSize = 64<<20, 96<<20
	config.IdempotentCount = 3
	config.TestVolumeMutableParameters = map[string]string{"max-iops": "500", "max-bandwidth": "100Mi"}
	sanity.Test(t, config)

	list, err := gateway.Attachments(context.Background())
	if err != nil || len(list) > 0 {
		t.Errorf("the suite ended, and there is attached: %v, %v", list, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir+"/target") || strings.Contains(string(mounts), dir+"/staging") {
		t.Errorf("the suite ended, and there is mounted: %s, %v", mounts, err)
	}
}

// startGateway runs this host's gateway until the test ends.
func startGateway(t *testing.T, dir string, endpoints []string) *hostclient.Client {
	t.Helper()
	socket := filepath.Join(dir, "gateway.sock")
	log, err := os.Create(filepath.Join(dir, "gateway.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(*binary, "gateway", "--endpoint", strings.Join(endpoints, ","), "--state-dir", filepath.Join(dir, "state"),
		"--socket", socket, "--link-dir", "", "--host-id", "sanity-1", "--zone", "z1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the gateway said (%v):\n%s", err, text)
		}
	})
	c, err := hostclient.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline := time.After(30 * time.Second)
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		if _, err := c.Info(context.Background()); err == nil {
			tick.Stop()
			return c
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the gateway does not answer")
		}
	}
}

// serve serves until the test ends.
func serve(t *testing.T, path string, config csi.Config) {
	t.Helper()
	l, err := unixsocket.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
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
