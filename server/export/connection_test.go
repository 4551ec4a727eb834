package export_test

import (
	"net"
	"testing"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/server/export"
	"github.com/storaged/storaged/server/volume"
	"github.com/storaged/storaged/server/volume/volumetest"
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
	b := export.New(export.Config{Gateway: g})
	if _, err := b.Open(t.Context(), "none", nbd.Peer{}); err == nil || len(b.Connections()) != 0 {
		t.Fatalf("a volume that is not there: %v, %+v", err, b.Connections())
	}
	tcp, err := b.Open(t.Context(), "data", nbd.Peer{RemoteAddr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 4711}})
	if err != nil {
		t.Fatal(err)
	}
	local, err := b.Open(t.Context(), "data", nbd.Peer{RemoteAddr: &net.UnixAddr{Net: "unix"}})
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
