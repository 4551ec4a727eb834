package control

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// TestRemovedNodeStops: a node that was removed while it was away is told so by whomever it asks when it comes back, and its
// Run ends. The line is askStanding's in runReports: the node hears of no leader, and so asks nobody else.
func TestRemovedNodeStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		for id := storage.NodeID(1); id <= 4; id++ {
			k.addNode(id)
			k.until("the node is there", func() bool { return k.nodeState(id) == storage.NodeUp })
		}
		k.until("every group has three voters", func() bool { return k.grown(3) })
		if k.leader() == 4 {
			t.Fatal("the last node leads the catalog")
		}
		k.until("all have heard of all", func() bool { return len(k.running()[4].book.nodes()) == 4 })
		k.stopNode(4)
		k.until("the node is down", func() bool { return k.nodeState(4) == storage.NodeDown })
		k.propose(k.running()[k.leader()], catalog.SetNodeState{Node: 4, State: storage.NodeRemoved})
		k.until("it is no member any more", func() bool {
			return len(k.running()[k.leader()].inst.Configuration().Servers) == 3
		})
		// The leader that removed it goes on calling it for a while; its successor does not know it.
		first := k.leader()
		k.stopNode(first)
		k.startNode(first)
		k.until("another reigns", func() bool { return k.leader() != 0 && k.nodeState(first) == storage.NodeUp })
		asked := time.Now()
		k.startNode(4)
		k.mu.Lock()
		ended := k.nodes[4].ended
		k.mu.Unlock()
		var err error
		select {
		case err = <-ended:
		case <-time.After(time.Minute):
			t.Fatal("a node that was removed runs on")
		}
		if took := time.Since(asked); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		var removed *RemovedError
		if !errors.As(err, &removed) || removed.Node != 4 || removed.Name != "n4" || !errors.Is(err, storage.ErrPermission) {
			t.Errorf("Run ended with %v", err)
		}
		for _, want := range []string{"node 4 (n4)", "removed from the cluster", "empty data directory", "--join"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
		// What it asks as a client of the catalog ends as well, at whoever has heard of the removal.
		if _, err := k.running()[4].askNode(t.Context(), time.Second, k.leader(), MethodPropose, []byte("{}")); !errors.As(err, &removed) {
			t.Errorf("a command of the removed node: %v", err)
		}
		k.until("the others go on", func() bool { return k.grown(3) })
		for id := storage.NodeID(1); id <= 3; id++ {
			k.mu.Lock()
			ended := k.nodes[id].ended
			k.mu.Unlock()
			select {
			case err := <-ended:
				t.Errorf("node %s stopped: %v", id, err)
			default:
			}
		}
	})
}

// TestRemovalIsForTheOneWhoAsks: an error that another node was removed does not end this one.
func TestRemovalIsForTheOneWhoAsks(t *testing.T) {
	c := &Controller{id: Identity{Node: 1}, removed: make(chan error, 1)}
	c.heed(nil)
	c.heed(storage.E("serve", storage.KindPermission, "node 2", &RemovedError{Node: 2, Name: "b"}))
	c.heed(storage.E("greet", storage.KindPermission, "node 1", nil))
	if len(c.removed) != 0 {
		t.Fatalf("it ends for %v", <-c.removed)
	}
	err := failed(storage.E("serve", storage.KindPermission, "node 1", &RemovedError{Node: 1, Name: "a"}))
	back, _ := decodeReply(encodeReply(err))
	for range 2 {
		c.heed(back.err())
	}
	if len(c.removed) != 1 {
		t.Fatal("its own removal does not end it")
	}
}
