package export_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/export"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
	"github.com/storaged/storaged/nbd"
)

// TestConnections: the backend knows who has an export open, until it is closed.
func TestConnections(t *testing.T) {
	c := volumetest.New()
	t.Cleanup(c.Close)
	c.CreateVolume("data", extent, 1)
	g, err := volume.New(volume.Config{Cluster: c.Start(1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	b := export.New(g)
	if _, err := b.Open(t.Context(), "none", nbd.Peer{}); err == nil || len(b.Connections()) != 0 {
		t.Fatalf("a volume that is not there: %v, %+v", err, b.Connections())
	}
	tcp, err := b.Open(t.Context(), "data?access=shared", nbd.Peer{RemoteAddr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 4711}})
	if err != nil {
		t.Fatal(err)
	}
	local, err := b.Open(t.Context(), "data?access=shared", nbd.Peer{RemoteAddr: &net.UnixAddr{Net: "unix"}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, c := range b.Connections() {
		got[c.Client] = c.Volume == "data" && !c.Since.IsZero() && !c.ReadOnly
	}
	if len(got) != 2 || !got["10.0.0.9:4711"] || !got["unix socket"] {
		t.Errorf("open: %+v", b.Connections())
	}
	if err := tcp.Close(false); err != nil {
		t.Fatal(err)
	}
	if left := b.Connections(); len(left) != 1 || left[0].Client != "unix socket" {
		t.Errorf("one closed: %+v", left)
	}
	if err := local.Close(true); err != nil {
		t.Fatal(err)
	}
	if left := b.Connections(); len(left) != 0 {
		t.Errorf("all closed: %+v", left)
	}
}

// TestReaders: an export for readers is read-only, beside others of its kind, and beside no writer.
func TestReaders(t *testing.T) {
	c := volumetest.New()
	t.Cleanup(c.Close)
	c.CreateVolume("data", extent, 1)
	var backends []*export.Backend
	for node := range storage.NodeID(2) {
		g, err := volume.New(volume.Config{Cluster: c.Start(node + 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := g.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		backends = append(backends, export.New(g))
	}
	peer := nbd.Peer{RemoteAddr: &net.UnixAddr{Net: "unix"}}
	for i, b := range backends {
		e, err := b.Open(t.Context(), "data?access=readers", peer)
		if err != nil {
			t.Fatalf("reader %d: %v", i, err)
		}
		if !b.Connections()[0].ReadOnly {
			t.Errorf("reader %d may write", i)
		}
		defer func() { _ = e.Close(true) }() // it has written nothing
	}
	if _, err := backends[0].Open(t.Context(), "data?access=shared", peer); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("a writer beside readers: %v", err)
	}
}

// An exclusive export belongs to one client, not to one node. A second client of the same node is refused, and both are
// named. The same client may have several connections, and another client gets in when it has gone. The lines are the Client
// in Backend.Open and ForClient in the server's Attach.
func TestExclusiveForOneClient(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		g, err := volume.New(volume.Config{Cluster: n.cluster.Start(2)})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = g.Close(t.Context()) }()
		b := export.New(g)
		at := func(ip byte, port int) nbd.Peer {
			return nbd.Peer{RemoteAddr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, ip), Port: port}}
		}
		with := func(p nbd.Peer, name string) nbd.Peer {
			p.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: name}}}}
			return p
		}
		for name, tc := range map[string]struct{ first, same, other nbd.Peer }{
			"address":     {at(1, 1), at(1, 2), at(2, 1)},
			"certificate": {with(at(1, 1), "vm-1"), with(at(3, 1), "vm-1"), with(at(1, 2), "vm-2")},
		} {
			first, err := b.Open(t.Context(), "data", tc.first)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			again, err := b.Open(t.Context(), "data", tc.same)
			if err != nil {
				t.Fatalf("%s: a second connection of one client: %v", name, err)
			}
			if _, err := b.Open(t.Context(), "data", tc.other); !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), "is refused") {
				t.Errorf("%s: another client is answered %v", name, err)
			}
			_, _ = first.Close(false), again.Close(false)
			synctest.Wait()
			next, err := b.Open(t.Context(), "data", tc.other)
			if err != nil {
				t.Fatalf("%s: after the first has gone: %v", name, err)
			}
			_ = next.Close(false)
			synctest.Wait()
		}
	})
}
