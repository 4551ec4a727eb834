//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/gateway/remote"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
)

// holdingPeers is a proxy between a gateway and the nodes that keeps the copies of writes to itself once it is told to.
type holdingPeers struct {
	remote.Peers

	mu      sync.Mutex
	holding bool
	held    []peer.Request // copies of their own
	got     chan struct{}  // a token for each; capacity enough
}

// Call implements remote.Peers.
func (p *holdingPeers) Call(ctx context.Context, to storage.NodeID, lane peer.Lane, req *peer.Request) (*peer.Response, error) {
	p.mu.Lock()
	hold := p.holding && req.Method == op.MethodPropose
	if hold {
		copied := *req
		copied.Payload = [][]byte{bytes.Join(req.Payload, nil)}
		p.held = append(p.held, copied)
		select {
		case p.got <- struct{}{}:
		default:
		}
	}
	p.mu.Unlock()
	if hold {
		<-ctx.Done() // no answer
		return nil, storage.E("call", storage.KindCanceled, "", ctx.Err())
	}
	return p.Peers.Call(ctx, to, lane, req)
}

// hostCluster is the way of a host to the cluster, through a proxy.
func hostCluster(t *testing.T, c *testcluster.Cluster, name string) (*volume.Gateway, *holdingPeers) {
	t.Helper()
	client := apiClient(t, c)
	status, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := client.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	book := remote.NewBook(remote.AddressesOf(nodes), nil)
	transport, err := peer.New(peer.Config{Cluster: status.ClusterID, Client: true, Resolve: book.Resolve})
	if err != nil {
		t.Fatal(err)
	}
	proxy := &holdingPeers{Peers: transport, got: make(chan struct{}, 64)}
	cluster := remote.NewCluster(remote.Config{Peers: proxy, API: client, Book: book, Host: name, Instance: rand.Text()})
	gateway, err := volume.New(volume.Config{Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { cluster.Run(ctx) })
	t.Cleanup(func() {
		closing, done := context.WithTimeout(ctx, 5*time.Second)
		defer done()
		_ = gateway.Close(closing) // one of them has nobody who answers
		cancel()
		wg.Wait()
		_ = transport.Close()
	})
	return gateway, proxy
}

// TestFirstCopyIsHeld: the first copy of a write sits in a proxy while its gateway is gone; the successor sends it once more,
// and something newer; then the proxy lets the first copy go, to whoever leads the group now. Nothing old appears (I3;
// docs/design.md section 9). The line that keeps it is the loop in device.closePredecessors (gateway/volume).
func TestFirstCopyIsHeld(t *testing.T) {
	c := startWithVolume(t, nil)
	at, err := apiClient(t, c).Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{Name: volumeName},
		Holder: storage.Holder{ID: "host-a", Kind: storage.HolderHost}, Access: storage.AccessExclusive})
	if err != nil {
		t.Fatal(err)
	}
	open := func() (*volume.Volume, *holdingPeers) {
		gateway, proxy := hostCluster(t, c, "host-a")
		v, err := gateway.Open(t.Context(), volumeName, volume.OpenOptions{Attachment: at.ID})
		if err != nil {
			t.Fatal(err)
		}
		return v, proxy
	}
	block := func(value byte) []byte { return bytes.Repeat([]byte{value}, storage.BlockSize) }
	write := func(v *volume.Volume, value byte) {
		if err := v.WriteAt(t.Context(), block(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	first, proxy := open()
	write(first, 1)
	proxy.mu.Lock()
	proxy.holding = true
	proxy.mu.Unlock()
	ctx, gone := context.WithCancel(t.Context())
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_ = first.WriteAt(ctx, block(2), 0) // nobody answers
	}()
	<-proxy.got

	second, clear := open() // while the first gateway is as good as dead: nothing of it comes through
	write(second, 2)        // the kernel sends it again
	write(second, 3)
	proxy.mu.Lock()
	held := proxy.held[0]
	proxy.mu.Unlock()
	answered := 0
	for id := storage.NodeID(1); id <= 3; id++ { // one of them leads
		resp, err := clear.Peers.Call(t.Context(), id, peer.Data, &held)
		if err != nil {
			continue // KindNotLeader
		}
		answered++
		if result, err := op.DecodeResult(resp.Header); err != nil || result.Kind == storage.KindNone {
			t.Errorf("the first copy was answered with %+v, %v; want a refusal", result, err)
		}
		resp.Release()
	}
	if answered == 0 {
		t.Fatal("no node has decided on the first copy")
	}
	got := make([]byte, storage.BlockSize)
	if err := second.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, block(3)) {
		t.Errorf("the block reads as %d, %v; want the newest write", got[0], err)
	}
	gone()
	<-wrote
}
