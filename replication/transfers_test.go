package replication

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
)

// TestTransferToAReplicaOutOfReachIsNotRepeated guards the work of a group after a transfer that could not be: without
// transfers.allowed (tried: always true) some of the groups lead with the library's mark "transfer in progress" when their
// first leader is elected again, and refuse every request for good.
//
// The library's goroutine for a follower takes out what the first transfer has left, or notices that leadership is lost,
// as a select chooses. So there are many groups.
func TestTransferToAReplicaOutOfReachIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 8
		h := newHarness(t, 3)
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		var clients []*client
		for g := range storage.GroupID(groups) {
			h.bootstrapVoters(g+1, 1, 2, 3)
			clients = append(clients, h.open(g+1, 7, 1))
		}
		h.leadEach(groups, 1)
		h.net.CutBoth(nodeName(1), nodeName(3))
		<-time.After(15 * time.Second) // requests to node 3 have failed some times, and are tried again many seconds apart
		for _, c := range clients {
			c.write(0, block(1)) // and its next one is not up to date any more
		}
		first := h.transferEach(groups, 1, 3)
		h.net.Isolate(nodeName(1)) // it loses its leadership while the second transfers wait
		second := h.transferEach(groups, 1, 3)
		<-time.After(30 * time.Second)
		h.net.HealAll()
		h.leadEach(groups, 1)
		for i, c := range clients {
			if first[i] == nil || !errors.Is(second[i], runner.ErrTransferAgain) {
				t.Errorf("group %d: the first transfer ended with %v, want a time-out; the second with %v, want %v", c.group, first[i], second[i], runner.ErrTransferAgain)
			}
			c.write(0, block(2))
		}
	})
}

// transferEach asks one node to give the leadership of each group to another, all at once.
func (h *harness) transferEach(groups, from, to int) []error {
	errs := make([]error, groups)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			id := storage.NodeID(to)
			errs[i] = h.nodes[storage.NodeID(from)].replicas.TransferLeadership(context.Background(), storage.GroupID(i+1), string(serverID(id)), id)
		})
	}
	all.Wait()
	return errs
}

// leadEach has one node lead each group.
func (h *harness) leadEach(groups, to int) {
	h.t.Helper()
	for g := range storage.GroupID(groups) {
		h.eventually("the node to lead", func() bool {
			leader := h.leaderOf(g + 1)
			if id := storage.NodeID(to); leader != id && leader != 0 {
				_ = h.nodes[leader].replicas.TransferLeadership(context.Background(), g+1, string(serverID(id)), id)
			}
			return leader == storage.NodeID(to)
		})
	}
}
