package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

// TestRounds: each step is an answer of member a; at looks the leader.
func TestRounds(t *testing.T) {
	const within = 500 * time.Millisecond
	var r rounds
	zero := time.Time{}.Add(time.Hour)
	for i, s := range []struct {
		at          time.Duration
		term        uint64
		index, last uint64 // acknowledged, and the leader's last entry then
		look        time.Duration
		want        bool
	}{
		{0, 1, 10, 1000, 0, false}, // nothing is known yet
		{400 * time.Millisecond, 1, 900, 2000, 400 * time.Millisecond, false},           // not yet at the first target
		{450 * time.Millisecond, 1, 1000, 2100, 450 * time.Millisecond, true},           // a round of 450 ms
		{450 * time.Millisecond, 1, 1000, 2100, 951 * time.Millisecond, false},          // the present one takes longer
		{1100 * time.Millisecond, 1, 2100, 4000, 1100 * time.Millisecond, false},        // it took 650 ms
		{1200 * time.Millisecond, 1, 4000, 4100, 1200 * time.Millisecond, true},         // and the next 100
		{1250 * time.Millisecond, 2, 4100, 4200, 1250 * time.Millisecond, false},        // another term begins anew
		{1260 * time.Millisecond, 1, 9000, 9000, 1260 * time.Millisecond, false},        // an answer of the term before
		{1270 * time.Millisecond, 2, 4200, 4300, 1270 * time.Millisecond, true},         // a round in the new term
		{1270 * time.Millisecond, 2, 4200, 4300, 1270*time.Millisecond + within, true},  // at the bound
		{1270 * time.Millisecond, 2, 4200, 4300, 1271*time.Millisecond + within, false}, // silent
	} {
		r.acked("a", s.term, s.index, s.last, zero.Add(s.at))
		if got := r.keepsUp("a", max(s.term, r.term), zero.Add(s.look), within); got != s.want {
			t.Errorf("step %d: keeps up: %v", i, got)
		}
	}
	if r.keepsUp(raft.ServerID("b"), 2, zero, within) || r.keepsUp("a", 1, zero.Add(1270*time.Millisecond), within) {
		t.Error("one that never answered, or of another term, keeps up")
	}
}

// TestLearnerOfABusyGroupBecomesAVoter: hundreds of writes are under way at any moment, so that no follower is ever near the end of the log.
// A learner that keeps up is told to have caught up, and becomes a voter. One on a link that is too slow does not.
//
// Line: the rounds in caughtUp and awaitCaughtUp. With a bound of 64 entries nobody was told to, and both were refused.
func TestLearnerOfABusyGroupBecomesAVoter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 4)
		defer h.close()
		for id := storage.NodeID(1); id <= 4; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2)
		c := h.open(1, 7, 1)
		h.addLearners(1, 3, 4)
		h.lead(1)
		const delay = 20 * time.Millisecond
		for id := storage.NodeID(2); id <= 4; id++ {
			h.net.SetLink(nodeName(1), nodeName(id), simnet.Link{Delay: delay})
		}
		h.net.SetLink(nodeName(1), nodeName(4), simnet.Link{Delay: delay, BytesPerSecond: 64 << 10})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		c.flood(ctx, 192, 1<<20)
		<-time.After(time.Second)
		near, keeps := map[storage.NodeID]int{}, map[storage.NodeID]int{}
		for range 20 {
			<-time.After(17 * time.Millisecond)
			s := h.nodes[1].replicas.Status()[0]
			for _, m := range s.Replicas {
				if m.AckedIndex+64 >= s.LastIndex {
					near[m.Node]++
				}
				if m.CaughtUp {
					keeps[m.Node]++
				}
			}
		}
		if near[3] > 2 || keeps[3] < 18 || keeps[4] > 0 {
			t.Errorf("of 20 looks %v find who is near the end, %v who keeps up", near, keeps)
		}
		if err := h.promote(1, 4); err == nil {
			t.Error("a learner that does not keep up became a voter")
		}
		if err := h.promote(1, 3); err != nil {
			t.Error(err)
		}
	})
}
