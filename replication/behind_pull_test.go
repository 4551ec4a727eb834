package replication

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/runner"
)

// manifests returns how many manifests a node has opened since its start.
func (n *simNode) manifests() uint64 {
	n.replicas.pulls.mu.Lock()
	defer n.replicas.pulls.mu.Unlock()
	return n.replicas.pulls.next
}

// TestLearnerGoesOnFromTheLog: a busy group writes a checkpoint after a replica was pulled and before it is a member. The replica is brought up from
// the log, and nothing is pulled twice. So is a follower that was away for a while. When they have all, and when nobody comes, the log goes.
//
// Lines: the hold of pullServer.remove, and that of members in keepLog; without the first the learner, without the second the follower needed
// another manifest. That of behindFor, and behind.acked, without which the log stayed.
func TestLearnerGoesOnFromTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.retainBytes = -1
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1)
		c := h.open(1, 7, 1)
		const blocks = 100
		write := func() {
			for i := range uint32(blocks) {
				c.write(i*storage.BlockSize, block(byte(i%250+1)))
			}
		}
		write()
		leader := h.nodes[1]
		g := leader.replicas.mustGroup(1)
		if err := h.nodes[2].replicas.CreateReplica(t.Context(), 1, storeID(2), 2, 1); err != nil {
			t.Fatal(err)
		}
		checkpoint := func() {
			t.Helper()
			if err := g.checkpoint(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		write()
		checkpoint()
		<-time.After(time.Minute) // the catalog takes its time
		checkpoint()
		h.change(1, runner.AddNonvoter, 2, 2)
		h.change(1, runner.AddVoter, 2, 2)
		if n := leader.manifests(); n != 1 {
			t.Fatalf("%d manifests were opened", n)
		}
		write()
		<-time.After(10 * time.Second)
		checkpoint()
		if first, last := g.extents.Log().FirstIndex(), g.extents.Log().LastIndex(); first != 0 && last-first > 20 {
			t.Errorf("of a group whose new replica has it all the log is kept from %d to %d", first, last)
		}
		h.grow(1, 3)
		h.lead(1)
		had := leader.manifests()
		h.nodes[2].crash()
		write()
		checkpoint()
		<-time.After(10 * time.Minute)
		write()
		checkpoint()
		h.nodes[2].start()
		h.has(c, 2, blocks)
		if n := leader.manifests(); n != had {
			t.Errorf("%d manifests more were opened for a follower that was away", n-had)
		}
		h.lead(1)
		<-time.After(behindFor + 10*time.Second)
		write()
		<-time.After(10 * time.Second)
		checkpoint()
		if first, last := g.extents.Log().FirstIndex(), g.extents.Log().LastIndex(); first != 0 && last-first > 20 {
			t.Errorf("of a group that nobody lags in the log is kept from %d to %d", first, last)
		}
	})
}

// TestIdleGroupHoldsNothing: members of an idle group have all of its log. It holds no segment of the disk on which another group writes the
// same MiB again and again.
//
// Guards I6, in keepLog: members that have all do not count. With them, all 39 were held, and up to 1 GiB would be.
func TestIdleGroupHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		h.retainBytes = -1
		h.store = func(c *extent.Config) { c.CheckpointBytes = 8 << 20 }
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		h.bootstrapVoters(2, 1)
		idle, busy := h.open(1, 7, 1), h.open(2, 8, 2)
		h.lead(1)
		idle.write(0, block(1))
		<-time.After(time.Minute)
		big := bytes.Repeat(block(9), 256)
		most := 0
		for range 120 {
			busy.write(0, big)
			time.Sleep(5 * time.Millisecond)
			most = max(most, h.nodes[1].sealedSegments())
		}
		if most > 12 {
			t.Errorf("%d segments are held", most)
		}
	})
}
