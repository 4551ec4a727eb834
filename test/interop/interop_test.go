//go:build interop

// Package interop_test runs the suite of NBD clients against the server on an export in memory, or against the export
// that STORAGED_INTEROP_URI names (nbd://host:port/export or nbd+unix:///export?socket=path), which loses its contents.
package interop_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdtest"
	"github.com/storaged/storaged/test/interop/suite"
)

func TestInterop(t *testing.T) {
	if uri := os.Getenv("STORAGED_INTEROP_URI"); uri != "" {
		cfg, err := nbd.ParseURI(uri)
		if err != nil {
			t.Fatal(err)
		}
		suite.Run(t, suite.Target{Network: cfg.Network, Address: cfg.Address, Export: cfg.Export})
		return
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			suite.Run(t, suite.Target{Network: network, Address: serve(t, network), Export: "volume-1"})
		})
	}
}

// serve starts a server with two volumes, and returns its address.
func serve(t *testing.T, network string) string {
	backend := nbdtest.NewBackend()
	backend.Add("volume-1", 100<<20)
	backend.Add("volume-2", 1<<20)
	server, err := nbd.NewServer(nbd.Config{Backend: backend})
	if err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "nbd.sock")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(ctx, ln); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	return ln.Addr().String()
}
