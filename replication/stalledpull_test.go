package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

// TestPullEndsWhenItStalls: a pull ends a minute after its last step, whatever it waits for: here the disk. One that gets on ends when it
// has all, however long that takes.
//
// Lines: the watch in group.pull, without which the first went on for ever; that a step counts (puller.step), without which the second ended.
func TestPullEndsWhenItStalls(t *testing.T) {
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
		for i := range uint32(400) {
			c.write(2*i*storage.BlockSize, block(1)) // apart: an answer of the source for each
		}
		create := func(n storage.NodeID) (time.Duration, error) {
			begun := time.Now()
			err := h.nodes[n].replicas.CreateReplica(t.Context(), 1, storeID(n), storage.Incarnation(n), 1)
			return time.Since(begun), err
		}
		h.nodes[2].stall.begin()
		took, err := create(2)
		h.nodes[2].stall.end()
		if !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, errStalled) || took < pullPatience || took > 2*pullPatience {
			t.Fatalf("on a disk that hangs it ended after %v: %v", took, err)
		}
		h.net.SetLink(nodeName(1), nodeName(3), simnet.Link{Delay: 200 * time.Millisecond})
		if took, err = create(3); err != nil || took < pullPatience+10*time.Second {
			t.Fatalf("created after %v: %v", took, err)
		}
	})
}
