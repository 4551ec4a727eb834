package client_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	"github.com/storaged/storaged/api/client"
)

var realID, emptyID = storage.ClusterID{0xaa, 1}, storage.ClusterID{0xee, 2}

// addOf serves, at the address until the test ends, a cluster of that id.
func (n *network) addOf(t *testing.T, address string, id storage.ClusterID, cluster api.Cluster) {
	t.Helper()
	server, err := api.NewServer(api.Config{Cluster: cluster, ClusterID: func() storage.ClusterID { return id }})
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(64 << 10)
	n.mu.Lock()
	n.nodes[address] = l
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

// twoClusters is a network with a node of a cluster that has the volume v, and one of an empty cluster.
func twoClusters(t *testing.T) (*network, *apitest.Cluster) {
	t.Helper()
	n, cluster := newNetwork(), apitest.New(time.Now)
	if _, err := cluster.CreateVolume(t.Context(), api.NewVolume{Name: "v", SizeBytes: 1 << 20, RequestID: "x"}); err != nil {
		t.Fatal(err)
	}
	n.addOf(t, "real:7000", realID, cluster)
	n.addOf(t, "empty:7000", emptyID, apitest.New(time.Now))
	return n, cluster
}

func (n *network) clientOf(t *testing.T, id storage.ClusterID, endpoints ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Endpoints: endpoints, Cluster: id, Dial: n.dial, Patience: 2 * time.Second, AttemptTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestTwoClusters: a client whose endpoints belong to different clusters does nothing, and says which belongs to which. One that
// is told which is meant asks only that.
func TestTwoClusters(t *testing.T) {
	for _, order := range [][]string{{"empty", "real"}, {"real", "empty"}} {
		n, cluster := twoClusters(t)
		c := n.clientOf(t, storage.ClusterID{}, order...)
		err := c.DeleteVolume(t.Context(), "v", 0)
		if !errors.Is(err, storage.ErrConflict) {
			t.Errorf("%v: deleting gives %v", order, err)
		}
		for _, want := range []string{"real:7000", realID.String(), "empty:7000", emptyID.String(), "--cluster"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: it does not say %s: %v", order, want, err)
			}
		}
		if _, err := cluster.Volume(t.Context(), "v"); err != nil {
			t.Errorf("%v: the volume: %v", order, err)
		}
		c = n.clientOf(t, realID, order...)
		if err := c.DeleteVolume(t.Context(), "v", 0); err != nil {
			t.Errorf("%v: with the cluster named: %v", order, err)
		}
		if _, err := cluster.Volume(t.Context(), "v"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%v: the volume is still there: %v", order, err)
		}
	}
}

// TestBackupOfTheClusterThatIsMeant: what is answered in parts keeps to one cluster as well. Guards: Client.streamWithCluster, which names
// the cluster and looks at whose answer it is.
func TestBackupOfTheClusterThatIsMeant(t *testing.T) {
	n, _ := twoClusters(t)
	if b, err := n.clientOf(t, realID, "empty").BackupCatalog(t.Context()); !errors.Is(err, storage.ErrConflict) || len(b) > 0 {
		t.Errorf("%d bytes of another cluster's catalog, %v", len(b), err)
	}
	if b, err := n.clientOf(t, realID, "empty", "real").BackupCatalog(t.Context()); err != nil || !bytes.Contains(b, []byte(`"name":"v"`)) {
		t.Errorf("%d bytes, %v; want the catalog that has the volume", len(b), err)
	}
	c := n.clientOf(t, storage.ClusterID{}, "real")
	if _, err := c.BackupCatalog(t.Context()); err != nil || c.Cluster() != realID {
		t.Errorf("pinned to %v: %v", c.Cluster(), err)
	}
}

// TestPinnedCluster: once a cluster has answered, or is named, no other one is asked for anything, whatever becomes of its nodes.
func TestPinnedCluster(t *testing.T) {
	n, _ := twoClusters(t)
	c := n.clientOf(t, storage.ClusterID{}, "real")
	if _, err := c.Volume(t.Context(), "v"); err != nil || c.Cluster() != realID {
		t.Fatalf("pinned to %v: %v", c.Cluster(), err)
	}
	if err := c.Pin(emptyID); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("pinned a second time: %v", err)
	}
	if err := n.clientOf(t, realID, "empty").DeleteVolume(t.Context(), "v", 0); !errors.Is(err, storage.ErrConflict) ||
		!strings.Contains(err.Error(), realID.String()) || !strings.Contains(err.Error(), emptyID.String()) {
		t.Errorf("a volume of another cluster was deleted: %v", err)
	}
	// The real one's node is gone, the empty one took its place: what is behind the endpoint changes under a client that knows.
	c = n.clientOf(t, storage.ClusterID{}, "real", "late")
	if _, err := c.Volume(t.Context(), "v"); err != nil || c.Cluster() != realID {
		t.Fatalf("pinned to %v: %v", c.Cluster(), err)
	}
	n.addOf(t, "late:7000", emptyID, apitest.New(time.Now))
	n.mu.Lock()
	n.nodes["real:7000"] = n.nodes["empty:7000"]
	n.mu.Unlock()
	if err := n.clientOf(t, realID, "real", "late").DeleteVolume(t.Context(), "v", 0); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("all endpoints are of another cluster now: %v", err)
	}
}

// TestClusterMark: a request that is meant for one cluster, by the beginning of its id, is refused by every other one at the
// first contact, before the client knows of any.
func TestClusterMark(t *testing.T) {
	n, cluster := twoClusters(t)
	meant := api.WithCluster(t.Context(), realID.String()[:api.ClusterMarkBytes])
	if err := n.clientOf(t, storage.ClusterID{}, "empty").DeleteVolume(meant, "v", 0); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("the empty cluster deleted it: %v", err)
	}
	if err := n.clientOf(t, storage.ClusterID{}, "real").DeleteVolume(meant, "v", 0); err != nil {
		t.Errorf("its own cluster: %v", err)
	}
	if _, err := cluster.Volume(t.Context(), "v"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the volume is still there: %v", err)
	}
}
