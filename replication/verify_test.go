package replication

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// verifies has a node's replica of group 1 look at volume 7.
func (h *harness) verifies(node storage.NodeID, token uint64) (op.VerifyAnswer, error) {
	key := storage.ReplicaKey{Store: storeID(node), Incarnation: storage.Incarnation(node)}
	return h.nodes[node].replicas.Verify(context.Background(), 1, key, op.VerifyRequest{Volume: 7, End: 10, Token: token})
}

// TestVerify: each replica, whoever leads, finds and mends what its own disk does not give back; a second look finds all sound. A Digest that
// is proposed while clients write has all replicas say the same, at its index. Who does not run the replica that is meant says so.
//
// Guards I5: the look of followers (a read would never meet their blocks); resultOf for a Digest; the names in Verify.
func TestVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, l := unreadableBlocks(t, 6, nil)
		defer h.close()
		a, b := others(l)
		h.rots(a, 1)
		h.loses(b, 2)
		h.rots(l, 3)
		for _, n := range []storage.NodeID{l, a, b} {
			got, err := h.verifies(n, 0)
			if err != nil || got.Mended != 1 || got.Lost+got.Waiting != 0 || got.Blocks != 14 || got.Next != 10 {
				t.Errorf("node %d: %+v, %v", n, got, err)
			}
			again, err := h.verifies(n, 0)
			if err != nil || again.Mended != 0 || !slices.Equal(again.Extents, got.Extents) {
				t.Errorf("node %d again: %+v, %v", n, again, err)
			}
		}
		for token := uint64(1); token < 20; token++ {
			go func() {
				data := block(byte(100 + token))
				if r := c.do(c.writeOp(uint32(token%4)*storage.BlockSize, data), data); r.Kind != storage.KindNone {
					t.Errorf("write %d: %+v", token, r)
				}
			}()
			o := op.Op{Kind: op.Digest, Volume: 7, Seq: token}
			if r, err := h.nodes[l].replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil)}); err != nil || r.Kind != storage.KindNone {
				t.Fatalf("%+v, %v", r, err)
			}
			var all []op.ExtentContents
			for _, n := range []storage.NodeID{l, a, b} {
				got, err := h.verifies(n, token)
				if err != nil || len(got.Extents) != 1 || got.Extents[0].Index == 0 || got.Extents[0].Contents == (op.Contents{}) {
					t.Fatalf("node %d: %+v, %v", n, got, err)
				}
				all = append(all, got.Extents...)
			}
			if all[0] != all[1] || all[0] != all[2] {
				t.Errorf("entry %d: %+v", token, all)
			}
			time.Sleep(time.Second)
		}
		if _, err := h.nodes[l].replicas.Verify(context.Background(), 1, storage.ReplicaKey{Store: storeID(a), Incarnation: 9}, op.VerifyRequest{Volume: 7}); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("another replica: %v", err)
		}
		if _, err := h.verifies(a, 99); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a token that nobody knows: %v", err)
		}
	})
}
