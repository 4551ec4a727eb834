package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
)

// TestBehindCatchesUp: a follower that was slow has what it lacks as soon as it can take it, also when nothing new is written. The
// library sends one request a trigger, a new entry say, or half a second to a second; the line is the one in pipeline.AppendEntries
// that gives the pipeline up (tried: without it this takes minutes).
func TestBehindCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.configure = func(c *Config) { c.MaxAppendEntries = 4 }
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		defer h.close()
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		leader := h.awaitLeader(1)
		victim, _ := others(leader)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		v := h.nodes[victim]
		v.stall.begin()
		const writers, each = 64, 10
		done := c.flood(ctx, writers, each)
		time.Sleep(300 * time.Millisecond) // it does not count as hung yet
		v.stall.end()
		h.eventually("all is written", func() bool { return done.Load() == writers*each })
		begun := time.Now()
		last := func(n storage.NodeID) uint64 { return h.nodes[n].replicas.mustGroup(1).extents.Log().LastIndex() }
		lag := last(leader) - last(victim)
		for last(victim) < last(leader) && time.Since(begun) < 10*time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		took := time.Since(begun)
		t.Logf("%d entries in %v", lag, took)
		if took > 5*time.Second {
			t.Errorf("it took %v to catch up with %d entries", took, lag)
		}
	})
}
