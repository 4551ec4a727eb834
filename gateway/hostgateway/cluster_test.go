package hostgateway

import (
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/host"
)

// TestClusterOfBefore: while no node answers, a gateway that has devices goes on with the cluster that is written down. A gateway
// without devices waits: the nodes that answer in the end may be of another cluster, installed in the place of the earlier one. The
// line is the one in findCluster that looks whether there are devices.
func TestClusterOfBefore(t *testing.T) {
	for _, devices := range []bool{false, true} {
		g := newTestGateway(t, &fakeDriver{})
		var err error
		if g.api, err = client.New(client.Config{Endpoints: []string{"127.0.0.1:1"}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.api.Close() })
		before := clusterFile{Cluster: "8053b4ad-6aaf-714f-1cd6-fbdae959ed98", Nodes: map[storage.NodeID]string{1: "127.0.0.1:1"}}
		if err := g.state.writeCluster(before); err != nil {
			t.Fatal(err)
		}
		if devices {
			g.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD})
		}
		if found, err := g.findCluster(); devices != (err == nil) {
			t.Errorf("devices %t: %+v, %v", devices, found, err)
		}
	}
}
