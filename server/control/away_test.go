package control

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// on returns how many groups have a voter on the node.
func (k *cluster) on(id storage.NodeID) (n int) {
	for g := storage.GroupID(1); g <= catalog.DefaultGroups; g++ {
		if voters, _ := k.world.Voters(g); slices.Contains(voters, id) {
			n++
		}
	}
	return n
}

// votersOfCatalog returns the nodes that vote in the catalog, ascending.
func (k *cluster) votersOfCatalog() (ids []storage.NodeID) {
	for _, s := range k.running()[k.leader()].inst.Configuration().Servers {
		for id := storage.NodeID(1); id <= 9; id++ {
			if s.ID == ServerID(id) && s.Suffrage == 0 {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// TestNodeThatIsAwayIsReplaced: a node of four ends for good. Nothing happens for RepairAfter; then its replicas are made anew on the
// others, and its vote in the catalog goes to the fourth. When it comes back in the end it drops what it holds, and is of use again.
func TestNodeThatIsAwayIsReplaced(t *testing.T) {
	for _, leads := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const after = time.Minute
			k := newCluster(t, "")
			k.tune = func(c *Config) { c.RepairAfter = after }
			k.three()
			k.addNode(4)
			k.until("node 4 follows the catalog", func() bool { return k.nodeState(4) == storage.NodeUp })
			victim := k.leader()
			if !leads {
				victim = victim%3 + 1
			}
			k.until("it leads groups, too", func() bool { return k.spread(0, 4) })
			ended := time.Now()
			k.stopNode(victim)
			k.until("it is down", func() bool { return k.nodeState(victim) == storage.NodeDown })
			<-time.After(time.Until(ended.Add(after)))
			if n := k.on(victim); n != catalog.DefaultGroups {
				t.Errorf("leads: %v; %v after it ended it has %d voters", leads, after, n)
			}
			k.until("its replicas are elsewhere", func() bool { return k.on(victim) == 0 && k.grown(3) })
			if took := time.Since(ended); took < after || took > after+30*time.Second {
				t.Errorf("leads: %v; it took %v", leads, took)
			}
			want := slices.DeleteFunc([]storage.NodeID{1, 2, 3, 4}, func(id storage.NodeID) bool { return id == victim })
			k.until("the fourth votes in the catalog", func() bool { return slices.Equal(k.votersOfCatalog(), want) })
			k.startNode(victim)
			k.until("it is back, and holds nothing", func() bool {
				r, _ := k.world.Report(victim)
				return k.nodeState(victim) == storage.NodeUp && len(r.Replicas) == 0
			})
			if !k.grown(3) || !slices.Equal(k.votersOfCatalog(), want) {
				t.Errorf("leads: %v; back again, %v vote in the catalog", leads, k.votersOfCatalog())
			}
		})
	}
}

// TestNodeThatIsBackInTime: whoever is back within RepairAfter finds all as it was.
func TestNodeThatIsBackInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.tune = func(c *Config) { c.RepairAfter = time.Minute }
		k.three()
		k.addNode(4)
		k.until("node 4 follows the catalog", func() bool { return k.nodeState(4) == storage.NodeUp })
		victim := k.leader()%3 + 1
		for range 3 { // how long it was away before does not count
			k.stopNode(victim)
			<-time.After(50 * time.Second)
			k.startNode(victim)
			k.until("it is back", func() bool { return k.nodeState(victim) == storage.NodeUp })
		}
		<-time.After(5 * time.Minute)
		if k.on(victim) != catalog.DefaultGroups || k.on(4) != 0 || !k.grown(3) {
			t.Errorf("%d groups have a voter on it, %d on node 4", k.on(victim), k.on(4))
		}
	})
}

// TestHalfOfTheNodesAreAway: that does not look like the loss of a node, and nothing is moved.
func TestHalfOfTheNodesAreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.tune = func(c *Config) { c.RepairAfter = time.Minute }
		k.three()
		k.addNode(4)
		k.addNode(5)
		k.addNode(6)
		k.until("all are there", func() bool { return k.nodeState(6) == storage.NodeUp && len(k.votersOfCatalog()) == 5 })
		lost := k.leader()%3 + 1
		for _, id := range []storage.NodeID{4, 6, lost} { // three of five still vote in the catalog
			k.stopNode(id)
		}
		<-time.After(10 * time.Minute)
		if k.on(lost) != catalog.DefaultGroups || k.on(5) != 0 {
			t.Errorf("%d groups have a voter on it, %d on node 5", k.on(lost), k.on(5))
		}
		k.startNode(4)
		k.until("it is the loss of less than half", func() bool { return k.on(lost) == 0 && k.grown(3) })
	})
}

// TestPullsAreBounded: two replicas at once are pulled from a node, and two to one; all else goes on.
func TestPullsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTasks(t.Context(), 32, slog.New(slog.DiscardHandler), func(task, error) {})
		block := make(chan struct{})
		pull := func(key string, from, to storage.NodeID) bool {
			return ts.start(task{key: key, kind: slowKind, from: from, to: to, run: func(context.Context) error { <-block; return nil }}, time.Now())
		}
		if !pull("a", 1, 4) || !pull("b", 1, 5) || pull("c", 1, 6) {
			t.Error("from node 1")
		}
		if !pull("c", 2, 4) || pull("d", 3, 4) || !pull("d", 3, 5) || pull("e", 2, 5) {
			t.Error("to nodes 4 and 5")
		}
		if !ts.start(task{key: "x", kind: "drop", run: func(context.Context) error { return nil }}, time.Now()) {
			t.Error("other tasks")
		}
		close(block)
		synctest.Wait()
		if !pull("e", 1, 4) {
			t.Error("after they have ended")
		}
		ts.wg.Wait()
	})
}
