package replication

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
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
		h, n, c := alone(t)
		defer h.close()
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
		if err := h.nodes[1].replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
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
				s := h.nodes[id].replicas.Status()
				leader := h.leaderOf(1)
				return leader != 0 && s[0].AppliedIndex >= h.nodes[leader].replicas.Status()[0].CommitIndex
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
		replicas := h.nodes[1].replicas
		replicas.changing <- struct{}{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := replicas.CreateReplica(ctx, 1, storeID(1), 1, 1); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a creation behind another one: %v", err)
		}
		<-replicas.changing
	})
}

// TestChangesHavePatience: who makes or removes a replica while another is being made here waits as long as it says, and no longer.
func TestChangesHavePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		h.nodes[1].start()
		defer h.close()
		replicas := h.nodes[1].replicas
		replicas.changing <- struct{}{} // a pull, say
		for name, change := range map[string]func(ctx context.Context) error{
			"make":   func(ctx context.Context) error { return replicas.Bootstrap(ctx, 1, storeID(1), 1) },
			"pull":   func(ctx context.Context) error { return replicas.CreateReplica(ctx, 1, storeID(1), 1, 2) },
			"remove": func(ctx context.Context) error { return replicas.RemoveReplica(ctx, 1, storeID(1), 1) },
		} {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			begun := time.Now()
			err := change(ctx)
			cancel()
			if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "another replica is being made or removed") || time.Since(begun) != time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(begun))
			}
		}
		<-replicas.changing
		if err := replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
			t.Errorf("when the other has ended: %v", err)
		}
	})
}
