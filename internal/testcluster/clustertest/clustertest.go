// Package clustertest starts clusters of real processes for tests: they end with the test, and when it failed, the
// ends of their logs are shown and their data is left behind.
package clustertest

import (
	"context"
	"crypto/tls"
	"os"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

// Options say what to start.
type Options struct {
	Binary string // storaged; required
	Nodes  int    // default 3
	Args   []string
	TLS    *tls.Config // of the API, when Args say that it is TLS
	// NodeArgs are appended for node i, from 0.
	NodeArgs func(i int) []string
	// Prefix is put before every node's command; not together with Network.
	Prefix  []string
	Network *testcluster.Network // puts the nodes into namespaces; nil: loopback
	Keep    bool                 // leave the data behind in any case
}

// New prepares a cluster that ends with the test. It starts nothing.
func New(t *testing.T, o Options) *testcluster.Cluster {
	t.Helper()
	if o.Binary == "" {
		t.Fatal("-storaged says which binary to run (make does)")
	}
	dir, err := testcluster.TempDir("")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testcluster.Config{Command: []string{o.Binary}, Args: o.Args, TLS: o.TLS, NodeArgs: o.NodeArgs, Dir: dir, Nodes: o.Nodes}
	if o.Prefix != nil {
		cfg.Prefix = func(int) []string { return o.Prefix }
	}
	if o.Network != nil {
		cfg.Host, cfg.Prefix = o.Network.Host, o.Network.Prefix
		cfg.Ports = &testcluster.Ports{Peer: 7001, API: 7000, NBD: 10809, HTTP: 7002}
	}
	c, err := testcluster.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, c, dir, o.Keep) })
	return c
}

// Start starts a cluster that ends with the test, with every group full.
func Start(t *testing.T, o Options) *testcluster.Cluster {
	t.Helper()
	c := New(t, o)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	WaitFull(t, c)
	return c
}

// WaitFull fails the test when the groups do not become full within a minute.
func WaitFull(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.WaitFull(ctx); err != nil {
		t.Fatal(err)
	}
}

// NewNetwork makes namespaces for three nodes that end with the test.
func NewNetwork(t *testing.T) *testcluster.Network {
	t.Helper()
	network, err := testcluster.NewNetwork(3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	return network
}

// stopTimeout is longer than a node may take for a clean shutdown.
const stopTimeout = 15 * time.Second

func end(t *testing.T, c *testcluster.Cluster, dir string, keep bool) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
	if t.Failed() || keep {
		t.Logf("data and logs are in %s", dir)
		for _, n := range c.Nodes() {
			t.Logf("the end of %s:\n%s", n.LogPath, n.LogTail(30))
		}
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
