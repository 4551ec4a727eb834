package replication

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged"
)

func block(b byte) []byte { return bytes.Repeat([]byte{b}, storage.BlockSize) }

func (h *harness) equal(got, want []byte, what string) {
	h.t.Helper()
	if !bytes.Equal(got, want) {
		h.t.Fatalf("%s: got %x..., want %x...", what, got[:min(8, len(got))], want[:min(8, len(want))])
	}
}

func TestOneNodeWritesReadsAndRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		defer h.close()
		n := h.nodes[1]
		n.start()
		if err := n.host.Bootstrap(1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		c.write(100, []byte("partial"))
		want := block(1)
		copy(want[100:], "partial")
		h.equal(c.read(0, storage.BlockSize), want, "before the restart")
		h.equal(c.read(storage.BlockSize, storage.BlockSize), block(0), "a hole")
		n.shutdown()
		n.start()
		h.equal(c.read(0, storage.BlockSize), want, "after a restart")
		c.write(storage.BlockSize, block(2))
		n.crash()
		n.start()
		h.equal(c.read(0, storage.BlockSize), want, "after a power cut")
		h.equal(c.read(storage.BlockSize, storage.BlockSize), block(2), "after a power cut")
	})
}

func TestGrowsFromOneToThreeAndSurvivesEachNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		if err := h.nodes[1].host.Bootstrap(1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		c := h.open(1, 7, 1)
		for i := range uint32(32) {
			c.write(i*storage.BlockSize, block(byte(i+1)))
		}
		h.grow(1, 2, 3)
		check := func(when string) {
			t.Helper()
			for i := range uint32(32) {
				h.equal(c.read(i*storage.BlockSize, storage.BlockSize), block(byte(i+1)), when)
			}
		}
		check("after growth")
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].crash()
			start := time.Now()
			check("with a node down")
			t.Logf("node %d down: first reads answered after %v", id, time.Since(start))
			c.write(uint32(id-1)*storage.BlockSize, block(byte(id)))
			h.nodes[id].start()
			h.eventually("the node to catch up", func() bool {
				s := h.nodes[id].host.Status()
				leader := h.leaderOf(1)
				return leader != 0 && s[0].AppliedIndex >= h.nodes[leader].host.Status()[0].CommitIndex
			})
		}
		check("at the end")
	})
}

// TestCreateReplicaWaitsForItsTurn: one replica is made at a time, and who waits for that may give up. Guards the
// token in changing: a lock in its place stops virtual time here, and cannot be given up.
func TestCreateReplicaWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		h.nodes[1].start()
		defer h.close()
		host := h.nodes[1].host
		host.changing <- struct{}{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := host.CreateReplica(ctx, 1, storeID(1), 1, 1); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a creation behind another one: %v", err)
		}
		<-host.changing
	})
}
