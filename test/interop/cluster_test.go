//go:build interop

package interop_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/test/interop/suite"
)

var storagedFlag = flag.String("storaged", "", "the storaged `binary`")

const clusterVolumeBytes = 100 << 20

// TestOneNode: a cluster of one passes the suite over TCP and over its unix socket.
func TestOneNode(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nbd")
	c := startCluster(t, 1, "--nbd-socket", socket)
	t.Run("tcp", func(t *testing.T) {
		suite.Run(t, suite.Target{Network: "tcp", Address: c.Node(0).NBD, Export: "volume-1"})
	})
	t.Run("unix", func(t *testing.T) {
		suite.Run(t, suite.Target{Network: "unix", Address: socket, Export: "volume-1"})
	})
}

// TestThreeNodes: a cluster of three passes the suite through a node that others joined, and through one that joined.
func TestThreeNodes(t *testing.T) {
	c := startCluster(t, 3)
	for _, n := range []*testcluster.Node{c.Node(0), c.Node(2)} {
		t.Run(n.Name, func(t *testing.T) {
			suite.Run(t, suite.Target{Network: "tcp", Address: n.NBD, Export: "volume-1"})
		})
	}
}

// TestNodeTLS: a node's --nbd-tls-* flags do what they say.
func TestNodeTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := keyPair(t, dir)
	c := startCluster(t, 1, "--nbd-tls-cert", cert, "--nbd-tls-key", key, "--nbd-tls-require")
	secureClients(t, c.Node(0).NBD, dir)
}

// startCluster starts nodes with two volumes.
func startCluster(t *testing.T, nodes int, args ...string) *testcluster.Cluster {
	t.Helper()
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: nodes, Args: args})
	for _, name := range []string{"volume-1", "volume-2"} {
		if err := c.CreateVolume(t.Context(), name, clusterVolumeBytes); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// keyPair writes a server's certificate and key, and the authority's where GnuTLS looks.
func keyPair(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	c := certificate(t, dir)
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "node.pem"), filepath.Join(dir, "node-key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}
