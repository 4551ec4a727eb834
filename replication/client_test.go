package replication

import (
	"context"
	"net"
	"testing"
	"testing/synctest"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
)

// TestClientsProposeWhatGatewaysPropose guards I2 and I4: what fences and freezes volumes is the catalog's to propose, so
// a client of the peer protocol, which is a host's gateway, is refused (tried: without mayPropose in Replicas.servePropose
// any client sets the generation of any volume, and fences whoever has it).
func TestClientsProposeWhatGatewaysPropose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		self := h.net.Machine("gateway")
		client, err := peer.New(peer.Config{Cluster: simCluster, Client: true,
			Dial:    func(ctx context.Context, addr string) (net.Conn, error) { return self.Dial(ctx, addr) },
			Resolve: func(id storage.NodeID) (string, bool) { return nodeName(id) + ":1", true }})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ask := func(o op.Op, payload []byte) error {
			resp, err := client.Call(t.Context(), leader, peer.Data, &peer.Request{Method: op.MethodPropose, Group: 1,
				Payload: [][]byte{o.AppendHeader(nil), payload}})
			if err != nil {
				return err
			}
			defer resp.Release()
			r, err := op.DecodeResult(resp.Header)
			if err == nil {
				err = r.Err("propose", "group 1")
			}
			return err
		}
		for k := op.Kind(0); k < 64; k++ {
			switch k {
			case op.Write, op.Clear, op.OpenSession, op.CloseSession:
				continue
			}
			if err := ask(op.Op{Kind: k, Volume: c.volume, Session: c.session, Generation: 9, Epoch: 9}, nil); err == nil {
				t.Errorf("a client has operation %d run", k)
			}
		}
		if err := ask(op.Op{Kind: op.SetGeneration, Volume: c.volume, Generation: 9}, nil); storage.KindOf(err) != storage.KindPermission {
			t.Errorf("a client sets a generation: %v, want KindPermission", err)
		}
		if err := ask(c.writeOp(0, block(1)), block(1)); err != nil {
			t.Errorf("a client does not write: %v", err)
		}
		h.equal(c.read(0, storage.BlockSize), block(1), "after the client's write")
	})
}
