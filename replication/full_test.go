package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
)

// A node whose disk has no room left is told to stop. Whatever waits for room there ends: what peers have asked for, which the
// node would wait for before it closes its store, and Raft. No disk has failed by it, and with room again nothing is missing.
func TestStopWithoutRoom(t *testing.T) {
	for _, path := range []string{"store/meta/", "store/"} {
		t.Run(path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { stopWithoutRoom(t, path) })
		})
	}
}

func stopWithoutRoom(t *testing.T, path string) {
	h := newHarness(t, 3)
	for _, n := range h.nodes {
		n.start()
	}
	h.bootstrapVoters(1, 1, 2, 3)
	h.bootstrapVoters(2, 3)
	h.nodes[3].replicas.HandOver(context.Background())
	c := h.open(1, 7, 1)
	c.write(0, block(1))
	n := h.nodes[3]
	n.stall.fills(path)
	removed := make(chan error, 1)
	go func() { removed <- n.replicas.RemoveReplica(context.Background(), 2, storeID(3), 3) }()
	time.Sleep(10 * time.Second)
	select {
	case err := <-removed:
		t.Fatalf("there was room for all (%v): the test shows nothing", err)
	default:
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.replicas.Close(ctx); err != nil {
		t.Error(err)
	}
	select {
	case err := <-removed:
		if !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("what waited for room ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("a replica is still being removed: the node would wait for it, and not stop")
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := n.store.Failed(); err != nil {
		t.Errorf("the disk has failed for want of room: %v", err)
	}
	n.stop()
	<-n.ended
	_ = n.store.Close() // says that there is no room
	n.stall.fills("")
	n.start()
	time.Sleep(2 * time.Second) // the leader has heard that there is room
	c.write(0, block(3))
	h.eventually("node 3 has caught up", func() bool {
		a, b := n.replicas.mustGroup(1).extents.Log().LastIndex(), h.nodes[1].replicas.mustGroup(1).extents.Log().LastIndex()
		return a == b
	})
	if err := n.replicas.RemoveReplica(context.Background(), 2, storeID(3), 3); err != nil {
		t.Errorf("asked again, with room: %v", err)
	}
	h.close()
}
