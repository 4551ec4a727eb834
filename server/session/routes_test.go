package session

import (
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// TestHeartbeatTimeoutIsTold: the routes that a node tells gateways hold the cluster's heartbeat timeout.
func TestHeartbeatTimeoutIsTold(t *testing.T) {
	st := catalog.New()
	command, err := catalog.Encode(catalog.InitCluster{Cluster: catalog.Cluster{ID: storage.ClusterID{1}, HeartbeatTimeout: 2 * time.Second,
		Replicas: 3, Groups: 8}})
	if err != nil {
		t.Fatal(err)
	}
	if r := st.Apply(1, command); r.Err != nil {
		t.Fatal(r.Err)
	}
	if got := routesOf(st); got.HeartbeatTimeout != 2*time.Second {
		t.Errorf("the routes say %v", got.HeartbeatTimeout)
	}
}
