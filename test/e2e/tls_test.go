//go:build e2e && devices

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/tlsfiles/tlstest"
	"github.com/storaged/storaged/replication/peer"
)

// TestTLS: a cluster whose API and peers are mutual TLS serves gateways, and the CSI controller, with the host's
// certificate; one that shows none, or another's, is told what is wrong, and so is who would be a node with it.
func TestTLS(t *testing.T) {
	ours, theirs := tlstest.New(t, "ours"), tlstest.New(t, "theirs")
	nodeCert, nodeKey := ours.Issue("node")
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, TLS: ours.Client(ours), Args: []string{
		"--api-tls-cert", nodeCert, "--api-tls-key", nodeKey, "--api-tls-client-ca", ours.CA(),
		"--peer-tls-cert", nodeCert, "--peer-tls-key", nodeKey, "--peer-tls-ca", ours.CA()}})
	createOverTLS(t, c, ours.Client(ours))
	hostCert, hostKey := ours.Issue("host", peer.ClientUnit)
	toAPI := []string{"--tls-ca", ours.CA(), "--tls-cert", hostCert, "--tls-key", hostKey}
	toPeers := []string{"--peer-tls-ca", ours.CA(), "--peer-tls-cert", hostCert, "--peer-tls-key", hostKey}
	foreignCert, foreignKey := theirs.Issue("host", peer.ClientUnit)

	t.Run("host", func(t *testing.T) {
		g := startHost(t, c, "host-a", append(toAPI, toPeers...)...)
		a := g.MustAttach(t, host.Request{Volume: volumeName})
		writeAndReadBack(t, a.Device)
		if err := c.Node(0).Kill(); err != nil { // its gateway goes on with the others, over TLS as well
			t.Fatal(err)
		}
		writeAndReadBack(t, a.Device)
		if err := c.StartNode(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if err := g.Detach(t.Context(), volumeName, false); err != nil {
			t.Error(err)
		}
	})
	t.Run("CSI controller", func(t *testing.T) { controllerOverTLS(t, c, toAPI) })
	for _, w := range []struct {
		name string
		args []string
		want []string // in the gateway's log
	}{
		{"plain API", toPeers, []string{"the cluster is not reached", "does it speak TLS (--tls"}},
		{"API with another's certificate", append([]string{"--tls-ca", ours.CA(), "--tls-cert", foreignCert, "--tls-key", foreignKey}, toPeers...),
			[]string{"the cluster is not reached", "tls: bad certificate"}},
		{"another authority of the API", append([]string{"--tls-ca", theirs.CA(), "--tls-cert", hostCert, "--tls-key", hostKey}, toPeers...),
			[]string{"the cluster is not reached", "certificate signed by unknown authority"}},
		{"plain peers", toAPI, []string{"no node answers this gateway", "--peer-tls-cert"}},
		{"peers with another's certificate", append([]string{"--peer-tls-ca", ours.CA(), "--peer-tls-cert", foreignCert, "--peer-tls-key", foreignKey}, toAPI...),
			[]string{"no node answers this gateway", "the peer refuses this side's certificate (--peer-tls-cert)"}},
		{"another authority of the peers", append([]string{"--peer-tls-ca", theirs.CA(), "--peer-tls-cert", hostCert, "--peer-tls-key", hostKey}, toAPI...),
			[]string{"no node answers this gateway", "this side refuses the peer's certificate (--peer-tls-ca)"}},
	} {
		t.Run(w.name, func(t *testing.T) {
			g := startHost(t, c, "host-b", w.args...)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var text string
			err := testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
				text = g.LogText(t)
				for _, want := range w.want {
					if !strings.Contains(text, want) {
						return false
					}
				}
				return true
			})
			if err != nil {
				t.Errorf("the gateway does not say %q:\n%s", w.want, text)
			}
		})
	}
	t.Run("no node with a host's certificate", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, *storagedFlag, append([]string{"serve", "--data-dir", filepath.Join(t.TempDir(), "data"),
			"--listen-peer", "127.0.0.1:0", "--listen-api", "127.0.0.1:0", "--listen-nbd", "127.0.0.1:0", "--listen-http", "127.0.0.1:0",
			"--join", c.Node(1).Peer}, toPeers...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), peer.ClientUnit) {
			t.Errorf("it ended with %v:\n%s", err, out)
		}
	})
}

// createOverTLS makes the volume with a client of the test's own.
func createOverTLS(t *testing.T, c *testcluster.Cluster, config *tls.Config) {
	t.Helper()
	cl, err := client.New(client.Config{Endpoints: []string{c.Node(0).API}, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cl.Close() }()
	if _, err := cl.CreateVolume(t.Context(), api.NewVolume{Name: volumeName, SizeBytes: volumeBytes}); err != nil {
		t.Fatal(err)
	}
	plain, err := client.New(client.Config{Endpoints: []string{c.Node(0).API}, Patience: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Nodes(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("plain text was answered: %v", err)
	}
	_ = plain.Close()
}

// writeAndReadBack writes the device's beginning and reads it, past the page cache.
func writeAndReadBack(t *testing.T, device string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "block")
	run(t, "dd", "if=/dev/urandom", "of="+file, "bs=1M", "count=1", "status=none")
	run(t, "dd", "if="+file, "of="+device, "bs=64K", "oflag=direct", "conv=fsync", "status=none")
	run(t, "dd", "if="+device, "of="+file+".back", "bs=64K", "count=16", "iflag=direct", "status=none")
	run(t, "cmp", file, file+".back")
}

// controllerOverTLS asks `storaged csi` for a volume.
func controllerOverTLS(t *testing.T, c *testcluster.Cluster, flags []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	socket := filepath.Join(dir, "csi.sock")
	cmd := exec.Command(*storagedFlag, append([]string{"csi", "--mode", "controller", "--socket", socket, "--endpoint", c.Node(0).API + "," + c.Node(1).API}, flags...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Signal(os.Interrupt), cmd.Wait() }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answer, err := csi.NewControllerClient(conn).ListVolumes(t.Context(), &csi.ListVolumesRequest{}, grpc.WaitForReady(true))
	if err != nil || len(answer.GetEntries()) != 1 || !strings.Contains(answer.Entries[0].GetVolume().GetVolumeId(), volumeName) {
		t.Errorf("the controller lists %v, %v", answer, err)
	}
}
