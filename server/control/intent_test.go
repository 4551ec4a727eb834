package control

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// four is a cluster of four nodes that knows intents; node 4 holds nothing.
func four(t *testing.T) *cluster { return fourWith(t, time.Minute) }

// fourWith is four, with the time after which a node that is down is replaced.
func fourWith(t *testing.T, after time.Duration) *cluster {
	k := newCluster(t, "")
	k.version = catalog.Version
	k.tune = func(c *Config) { c.RepairAfter = after }
	k.three()
	k.addNode(4)
	k.until("node 4 follows the catalog", func() bool { return k.nodeState(4) == storage.NodeUp })
	return k
}

// any returns a node that runs, but for one.
func (k *cluster) any(but storage.NodeID) *Controller {
	for id, c := range k.running() {
		if id != but {
			return c
		}
	}
	return nil
}

func (k *cluster) node(id storage.NodeID) (n storage.Node) {
	k.running()[k.leader()].View(func(s *catalog.State) { n, _ = s.Node(id) })
	return n
}

func (k *cluster) leadsNothing(id storage.NodeID) bool {
	for g := storage.GroupID(1); g <= catalog.DefaultGroups; g++ {
		if _, leader := k.world.Voters(g); leader == id {
			return false
		}
	}
	return k.leader() != id
}

// TestDrainEmptiesANode: whether it leads the catalog or not, all that a node holds goes elsewhere, its vote in the catalog, too. Then it
// is removed while it is up. A node that ends while it drains is replaced as well.
func TestDrainEmptiesANode(t *testing.T) {
	for name, c := range map[string]struct{ leads, ends bool }{"a follower": {}, "the catalog's leader": {leads: true}, "a follower that ends": {ends: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := four(t)
				victim := k.leader()
				if !c.leads {
					victim = victim%3 + 1
				}
				k.propose(k.any(victim), catalog.SetNodeIntent{Node: victim, Intent: storage.IntentDrain})
				if c.ends {
					k.stopNode(victim)
				}
				k.until("it holds nothing", func() bool { return k.on(victim) == 0 && k.grown(3) })
				want := slices.DeleteFunc([]storage.NodeID{1, 2, 3, 4}, func(id storage.NodeID) bool { return id == victim })
				k.until("the fourth votes in the catalog", func() bool { return slices.Equal(k.votersOfCatalog(), want) })
				if c.ends {
					k.until("it is down", func() bool { return k.nodeState(victim) == storage.NodeDown })
				} else {
					k.until("it dropped what it held", func() bool { r, _ := k.world.Report(victim); return len(r.Replicas) == 0 })
				}
				k.until("no group names it", func() bool {
					named := false
					k.any(victim).View(func(s *catalog.State) {
						named = slices.ContainsFunc(s.Groups(), func(g storage.Group) bool { _, on := g.OnNode(victim); return on })
					})
					return !named
				})
				k.propose(k.any(victim), catalog.SetNodeState{Node: victim, State: storage.NodeRemoved})
			})
		})
	}
}

// TestCatalogThatIsNotHandedOver: the leader of the catalog is in maintenance, and nobody takes the catalog over. Its members change all the same:
// the vote of another node that drains goes to the fourth. Once somebody does, it is handed over.
func TestCatalogThatIsNotHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := four(t)
		k.mu.Lock()
		k.stubborn = true
		k.mu.Unlock()
		leader := k.leader()
		other := slices.DeleteFunc(k.votersOfCatalog(), func(id storage.NodeID) bool { return id == leader })[0]
		k.propose(k.any(other), catalog.SetNodeIntent{Node: leader, Intent: storage.IntentMaintenance, Until: time.Now().Add(time.Hour)})
		k.propose(k.any(other), catalog.SetNodeIntent{Node: other, Intent: storage.IntentDrain})
		k.until("another one votes for it", func() bool { v := k.votersOfCatalog(); return len(v) == 3 && !slices.Contains(v, other) })
		if k.leader() != leader {
			t.Error("the catalog was handed over")
		}
		k.mu.Lock()
		k.stubborn = false
		k.mu.Unlock()
		k.until("it is handed over", func() bool { l := k.leader(); return l != leader && l != other })
	})
}

// TestMaintenanceIsNoLoss: a node in maintenance gives its leaders away. It is not replaced while it is down, for much longer than
// RepairAfter, and is when its time is over.
func TestMaintenanceIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := four(t)
		victim := k.leader()
		begun := time.Now()
		k.propose(k.any(victim), catalog.SetNodeIntent{Node: victim, Intent: storage.IntentMaintenance, Until: begun.Add(time.Hour)})
		k.until("it leads nothing", func() bool { return k.leadsNothing(victim) })
		k.stopNode(victim)
		<-time.After(time.Until(begun.Add(59 * time.Minute)))
		if k.on(victim) != catalog.DefaultGroups || k.on(4) != 0 {
			t.Errorf("%d groups have a voter on it, %d on node 4", k.on(victim), k.on(4))
		}
		k.until("its time is over", func() bool { return k.node(victim).Intent == storage.IntentServe })
		if d := time.Since(begun); d < time.Hour || d > time.Hour+5*time.Second {
			t.Errorf("maintenance of an hour ended after %v", d)
		}
		k.until("it is lost", func() bool { return k.on(victim) == 0 && k.grown(3) })
	})
}

// TestSilenceOutlivesTheLeader: the leader of the catalog changes while a node is down. The new one goes on from when the node was heard
// last.
//
// Guards downForLocked: without what was recorded the time began anew, and this failed.
func TestSilenceOutlivesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const after = 10 * time.Minute
		k := fourWith(t, after)
		k.addNode(5)
		k.until("five nodes vote in the catalog", func() bool { return len(k.votersOfCatalog()) == 5 })
		victim := k.leader()%3 + 1
		ended := time.Now()
		k.stopNode(victim)
		k.until("it is down", func() bool { return k.nodeState(victim) == storage.NodeDown })
		if since := k.node(victim).SilentSince; since.Before(ended.Add(-5*time.Second)) || since.After(ended.Add(5*time.Second)) {
			t.Errorf("it ended at %v, and is said to be silent since %v", ended, since)
		}
		<-time.After(after / 2)
		old := k.leader()
		k.stopNode(old)
		k.until("another leads", func() bool { return k.leader() != old })
		k.startNode(old)
		<-time.After(time.Until(ended.Add(after)))
		if n := k.on(victim); n == 0 {
			t.Error("it was replaced too early")
		}
		k.until("its replicas are elsewhere", func() bool { return k.on(victim) == 0 && k.grown(3) })
		if took := time.Since(ended); took > after+30*time.Second {
			t.Errorf("it took %v", took)
		}
		k.startNode(victim)
		k.until("it is back", func() bool { return k.nodeState(victim) == storage.NodeUp })
		if since := k.node(victim).SilentSince; !since.IsZero() {
			t.Errorf("it is up, and silent since %v", since)
		}
	})
}

// TestNodesAreJudgedBeforeTheUpgrade: while a version is in force that does not know since when nodes are silent, they are found to be down all
// the same.
func TestNodesAreJudgedBeforeTheUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.version = catalog.IntentVersion - 1
		k.three()
		victim := k.leader()%3 + 1
		k.stopNode(victim)
		k.until("it is down", func() bool { return k.nodeState(victim) == storage.NodeDown })
		if n := k.node(victim); !n.SilentSince.IsZero() {
			t.Errorf("silent since %v", n.SilentSince)
		}
	})
}

// TestNodeThatVotesIsNotRemoved: a node that is up ends when it is removed, and its vote in the catalog with it.
func TestNodeThatVotesIsNotRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := four(t)
		leader := k.leader()
		remove := func(id storage.NodeID) string {
			_, err := k.running()[leader].Propose(t.Context(), catalog.SetNodeState{Node: id, State: storage.NodeRemoved})
			if storage.KindOf(err) != storage.KindConflict {
				t.Fatalf("node %v: %v", id, err)
			}
			return err.Error()
		}
		if text := remove(leader); !strings.Contains(text, "it leads the catalog") {
			t.Error(text)
		}
		k.stopNode(leader%3 + 1)
		k.until("it is down", func() bool { return k.nodeState(leader%3+1) == storage.NodeDown })
		if text := remove((leader+1)%3 + 1); !strings.Contains(text, "no majority is up") {
			t.Error(text)
		}
		if text := remove(4); strings.Contains(text, "votes in the catalog") { // it follows only
			t.Error(text)
		}
	})
}
