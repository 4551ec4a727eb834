package server

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/gateway/remote"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/replication/peer"
)

// hostGateway is the gateway of a host, as storaged gateway has it, of a volume that the host has attached.
func hostGateway(t *testing.T, n *node, attached string) *volume.Volume {
	t.Helper()
	shown := n.admin
	nodes, err := shown.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at, err := shown.Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{Name: attached}, Access: storage.AccessShared,
		Holder: storage.Holder{ID: "h", Kind: storage.HolderHost, Host: "h"}})
	if err != nil {
		t.Fatal(err)
	}
	book := remote.NewBook(remote.AddressesOf(nodes), nil)
	peers, err := peer.New(peer.Config{Cluster: n.identity.Cluster, Client: true, Resolve: book.Resolve, MaxInFlightBytes: 32 << 20,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	cluster := remote.NewCluster(remote.Config{Peers: peers, API: shown, Book: book, Host: "h", Instance: rand.Text()})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { cluster.Run(ctx) })
	gateway, err := volume.New(volume.Config{Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closing, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		_ = gateway.Close(closing)
		cancel()
		running.Wait()
		_ = peers.Close()
	})
	v, err := gateway.Open(t.Context(), attached, volume.OpenOptions{Attachment: at.ID})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestLimitsReachGateways: limits hold at the node's own gateway and at a host's, from the opening on, and their change
// reaches requests that wait already, at both.
func TestLimitsReachGateways(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	shown := n.admin
	made, err := shown.CreateVolume(t.Context(), api.NewVolume{Name: "web", SizeBytes: 64 << 20,
		Limits: storage.VolumeLimits{MaxBytesPerSecond: storage.MinBytesPerSecond}})
	if err != nil {
		t.Fatal(err)
	}
	here, err := n.gateway.Open(t.Context(), "web", volume.OpenOptions{Access: storage.AccessShared})
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close(context.Background())
	for name, v := range map[string]*volume.Volume{"node": here, "host": hostGateway(t, n, "web")} {
		if _, err := shown.ModifyVolume(t.Context(), "web", made.ID, api.VolumeChange{Limits: made.Limits.Change()}); err != nil {
			t.Fatal(err)
		}
		held := false // has the limits: what is above them has to wait
		for deadline := time.Now().Add(10 * time.Second); !held && time.Now().Before(deadline); {
			begin := time.Now()
			if err := v.WriteAt(t.Context(), make([]byte, 256<<10), 0); err != nil {
				t.Fatal(err)
			}
			held = time.Since(begin) > 100*time.Millisecond
		}
		if !held {
			t.Fatalf("%s: 40 MiB and more were written in 10 s, at 1 MiB a second", name)
		}
		// A minute's allowance in advance: the next write would have to wait that long.
		if err := v.WriteZeroes(t.Context(), 0, 60<<20, true); err != nil {
			t.Fatal(err)
		}
		waited := make(chan error, 1)
		begin := time.Now()
		go func() { waited <- v.WriteAt(t.Context(), make([]byte, storage.BlockSize), 0) }()
		select {
		case err := <-waited:
			t.Fatalf("%s: a write that had to wait was answered after %v: %v", name, time.Since(begin), err)
		case <-time.After(200 * time.Millisecond):
		}
		if _, err := shown.ModifyVolume(t.Context(), "web", 0, api.VolumeChange{Limits: storage.VolumeLimits{}.Change()}); err != nil {
			t.Fatal(err)
		}
		if err := <-waited; err != nil || time.Since(begin) > 10*time.Second {
			t.Errorf("%s: without limits the write went on after %v: %v", name, time.Since(begin), err)
		}
	}
}
