package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
)

// One entry of a leader's log cannot be read when a follower that lags needs it. What it wrote was applied long ago and
// overwritten since: the follower gets a manifest, and nobody loses a disk for it.
func TestAppliedEntryThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		h.cacheBytes = 1
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		l := h.awaitLeader(1)
		f, _ := others(l)
		h.nodes[f].shutdown()
		c.write(0, block(1))
		bad := h.nodes[l].replicas.mustGroup(1).extents.Log().LastIndex()
		for i := range uint32(40) {
			c.write(i*storage.BlockSize, block(byte(2+i)))
		}
		_, at, _, _, ok := h.nodes[l].replicas.mustGroup(1).extents.Log().Location(bad)
		if !ok {
			t.Fatalf("entry %d is not in the log", bad)
		}
		h.nodes[l].stall.badSector(int64(at.Offset()))
		h.nodes[f].start()
		h.eventually("the follower has caught up", func() bool {
			applied, _ := h.nodes[f].replicas.mustGroup(1).extents.Applied()
			return applied >= h.nodes[l].replicas.mustGroup(1).extents.Log().LastIndex()
		})
		if err := h.nodes[l].store.Failed(); err != nil || h.leaderOf(1) != l {
			t.Errorf("node %d, which led, has failed for one entry: %v; node %d leads", l, err, h.leaderOf(1))
		}
		c.write(0, block(99))
	})
}

// The same with an entry that its replica has not applied yet: that replica keeps out and is made anew. The disk, and
// another group that only lives there, go on.
func TestUnappliedEntryThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		h.cacheBytes = 1
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		h.bootstrapVoters(2, 3)
		h.nodes[3].replicas.HandOver(context.Background())
		c, lone := h.open(1, 7, 1), h.open(2, 8, 1)
		for i := range uint32(40) {
			c.write(i*storage.BlockSize, block(1))
		}
		lone.write(0, block(5))
		h.eventually("node 3 has all", func() bool {
			return h.nodes[3].replicas.mustGroup(1).extents.Log().LastIndex() >= 40
		})
		time.Sleep(time.Second) // it is durable
		bad := h.nodes[3].replicas.mustGroup(1).extents.Log().LastIndex() - 10
		_, at, _, _, _ := h.nodes[3].replicas.mustGroup(1).extents.Log().Location(bad)
		h.nodes[3].crash()
		h.net.CutBoth(nodeName(1), nodeName(3))
		h.net.CutBoth(nodeName(2), nodeName(3))
		h.nodes[3].start() // it reads all of its log, and knows nothing of what is committed
		h.nodes[3].stall.badSector(int64(at.Offset()))
		h.net.HealAll()
		h.eventually("the replica keeps out", func() bool {
			for _, s := range h.nodes[3].replicas.Status() {
				if s.Group == 1 && s.Role == "damaged" {
					return true
				}
			}
			return false
		})
		if err := h.nodes[3].store.Failed(); err != nil {
			t.Errorf("the disk has failed for one entry: %v", err)
		}
		lone.write(0, block(6))
	})
}

// A disk fails while a group is bootstrapped on it. The order ends, what comes after it is refused at once, everyone is
// told that the disk has failed, and the node stops when it is asked to.
func TestBootstrapOnADiskThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		n := h.nodes[1]
		n.start()
		if _, err := n.replicas.openReplica(9, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		n.stall.breaks("store/meta/") // the term that a bootstrap stores first
		done := make(chan error, 1)
		go func() { done <- n.replicas.Bootstrap(context.Background(), 9, storeID(1), 1) }()
		select {
		case err := <-done:
			if err == nil {
				t.Error("a group was made on a disk that has failed")
			}
		case <-time.After(time.Minute):
			t.Fatal("Bootstrap has not returned")
		}
		begun := time.Now()
		if err := n.replicas.Bootstrap(context.Background(), 10, storeID(1), 1); !errors.Is(err, storage.ErrIO) || time.Since(begun) > time.Second {
			t.Errorf("another group, after %v: %v", time.Since(begun), err)
		}
		if err := n.replicas.CreateReplica(context.Background(), 11, storeID(1), 1, 2); !errors.Is(err, storage.ErrIO) {
			t.Errorf("a replica: %v", err)
		}
		if n.store.Failed() == nil {
			t.Error("the store says that it is well")
		}
		h.close()
	})
}
