package hostgateway

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/host"
)

// moving is a cluster whose API is at one address, which changes.
type moving struct {
	*apitest.Cluster
	at atomic.Pointer[string]
}

// Nodes implements api.Cluster.
func (m *moving) Nodes(context.Context) ([]api.Node, error) {
	return []api.Node{{Node: storage.Node{ID: 1, Name: "first", State: storage.NodeRemoved, Addrs: storage.Addrs{Peer: "first:7001", API: "first:7000"}}},
		{Node: storage.Node{ID: 2, Name: "next", State: storage.NodeUp, Addrs: storage.Addrs{Peer: "next:7001", API: *m.at.Load()}}}}, nil
}

// TestEndpointsAreGone: what a gateway asks of the API is asked of nodes that it has learned of when those that it was told of are gone,
// also by the next gateway. The lines are those that call Learn.
func TestEndpointsAreGone(t *testing.T) {
	m := &moving{Cluster: apitest.New(time.Now)}
	move := func(to string) { m.at.Store(&to) }
	l := bufconn.Listen(64 << 10)
	server, err := api.NewServer(api.Config{Cluster: m})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	reach := []string{"first:7000", "next:7000"}
	var mu sync.Mutex // guards reach
	ask := func() *client.Client {
		c, err := client.New(client.Config{Endpoints: []string{"first"}, Patience: time.Second, Dial: func(ctx context.Context, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(reach, address) {
				return nil, errors.New("no such host")
			}
			return l.DialContext(ctx)
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	move("next:7000")
	g := newTestGateway(t, &fakeDriver{})
	g.api = ask()
	found, err := g.findCluster()
	if err != nil {
		t.Fatal(err)
	}
	n := g.newNodes(found)
	move("last:7000")
	n.set(map[storage.NodeID]string{2: "last:7001"})
	n.ask(t.Context())

	mu.Lock()
	reach = []string{"last:7000"}
	mu.Unlock()
	next := newTestGateway(t, &fakeDriver{})
	next.state, next.api = g.state, ask()
	next.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD})
	known, err := next.findCluster()
	if err != nil || known.Nodes[2] != "last:7001" {
		t.Fatalf("the next gateway finds %+v, %v", known, err)
	}
	next.newNodes(known)
	if _, err := next.api.Nodes(t.Context()); err != nil {
		t.Error(err)
	}
}
