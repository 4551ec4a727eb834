package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged"
)

// TestRepeatedChangeWaitsForItsCommit guards I8: a removal that is asked for again while it is only in the leader's log
// must not be told done, or the caller deletes a replica that a next leader still counts. Without the Barrier (tried:
// nil at once) the second request is answered while one disk of the two that matter hangs.
func TestRepeatedChangeWaitsForItsCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		leader := h.awaitLeader(1)
		a, b := others(leader)
		h.nodes[a].stall.begin()
		remove := func() <-chan error {
			done := make(chan error, 1)
			go func() {
				done <- h.nodes[leader].host.ChangeMembership(context.Background(), 1, RemoveServer,
					string(ServerID(storeID(b), storage.Incarnation(b))), b, 0)
			}()
			return done
		}
		first := remove()
		<-time.After(100 * time.Millisecond)
		second := remove()
		<-time.After(200 * time.Millisecond)
		select {
		case err := <-second:
			t.Fatalf("the repeated removal was answered (%v) before the first was committed", err)
		default:
		}
		h.nodes[a].stall.end()
		for _, done := range []<-chan error{first, second} {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestStatusOfAConfigurationThatIsNotCommitted: who decides by a leader's configuration must see that it may still be lost:
// members and ConfigIndex are of one configuration, and CommitIndex is below it until it is committed.
func TestStatusOfAConfigurationThatIsNotCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		a, b := others(leader)
		h.nodes[a].stall.begin()
		h.nodes[b].stall.begin()
		before := h.nodes[leader].host.Status()[0]
		if before.CommitIndex < before.ConfigIndex || len(before.Replicas) != 3 {
			t.Fatalf("before the change: %+v", before)
		}
		done := make(chan error, 1)
		go func() {
			done <- h.nodes[leader].host.ChangeMembership(context.Background(), 1, RemoveServer, string(serverID(b)), b, 0)
		}()
		time.Sleep(200 * time.Millisecond)
		if s := h.nodes[leader].host.Status()[0]; s.Role != "leader" || len(s.Replicas) != 2 || s.ConfigIndex <= before.ConfigIndex ||
			s.CommitIndex >= s.ConfigIndex {
			t.Errorf("while the removal is not committed: %+v", s)
		}
		h.nodes[a].stall.end()
		h.nodes[b].stall.end()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if s := h.nodes[leader].host.Status()[0]; s.CommitIndex < s.ConfigIndex || len(s.Replicas) != 2 {
			t.Errorf("after the commit: %+v", s)
		}
	})
}
