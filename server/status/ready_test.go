package status

import (
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/placement"
)

// readyWorld is a catalog with group 1 and the replica that node 1 has of it.
type readyWorld struct {
	r     readiness
	now   time.Time
	v     placement.View
	own   Replica
	holds bool
}

// newReadyWorld makes so many nodes that are up, all of them, up to three, voters of group 1.
func newReadyWorld(nodes int) *readyWorld {
	w := &readyWorld{now: time.Unix(1000, 0), holds: true}
	w.v.Cluster.Replicas = 3
	g := storage.Group{ID: 1, State: storage.GroupReady}
	for i := 1; i <= nodes; i++ {
		w.v.Nodes = append(w.v.Nodes, storage.Node{ID: storage.NodeID(i), State: storage.NodeUp})
		if i <= 3 {
			g.Replicas = append(g.Replicas, storage.Replica{Node: storage.NodeID(i), Role: storage.RoleVoter})
		}
	}
	w.v.Groups = []storage.Group{g}
	key := replicaOf(1)
	w.own = Replica{ReplicaReport: placement.ReplicaReport{Group: 1, Key: key, State: placement.ReplicaFollower, Leader: 2, Term: 3, Applied: 100,
		Members: []placement.Member{{Key: key, Node: 1, Voter: true}}}, LeaderCommit: 100, LeaderHeard: w.now}
	return w
}

// look lets the leader be heard now and returns what is wrong.
func (w *readyWorld) look() string {
	w.own.LeaderHeard = w.now
	return w.lookSilent()
}

func (w *readyWorld) lookSilent() string {
	var own []Replica
	if w.holds {
		own = append(own, w.own)
	}
	var texts []string
	for _, p := range w.r.problems(w.now, 1, w.v, own) {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "; ")
}

func (w *readyWorld) wants(t *testing.T, got, want string) {
	t.Helper()
	if want == "" && got != "" || !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestReadyMeansCaughtUp: a node that is back after a while is not ready until each of its voters is near its leader.
func TestReadyMeansCaughtUp(t *testing.T) {
	w := newReadyWorld(3)
	w.own.LeaderHeard = time.Time{}
	w.wants(t, w.lookSilent(), "has not heard")
	w.now = w.now.Add(time.Second)
	w.own.LeaderCommit = 100 + 4225
	w.wants(t, w.look(), "4225 entries behind")
	w.own.Applied = w.own.LeaderCommit - placement.PromotionLag - 1
	w.wants(t, w.look(), "65 entries behind")
	w.own.Applied++
	w.wants(t, w.look(), "")
}

// TestReadyDoesNotFlap: load puts hundreds of entries under way, and a burst more than that; only who stays behind is
// unready, and then until it is near again.
func TestReadyDoesNotFlap(t *testing.T) {
	w := newReadyWorld(3)
	w.now = w.now.Add(time.Second)
	w.wants(t, w.look(), "")
	step := func(lag uint64, d time.Duration) {
		w.now = w.now.Add(d)
		w.own.LeaderCommit += 10_000
		w.own.Applied = w.own.LeaderCommit - lag
	}
	for range 100 {
		step(maxLag-1, time.Second)
		w.wants(t, w.look(), "")
	}
	for range 5 {
		step(3*maxLag, lagPatience-time.Second)
		w.wants(t, w.look(), "")
		step(10, time.Second)
		w.wants(t, w.look(), "")
	}
	step(3*maxLag, time.Second)
	w.wants(t, w.look(), "")
	step(3*maxLag, lagPatience-time.Second)
	w.wants(t, w.look(), "")
	step(3*maxLag, time.Second)
	w.wants(t, w.look(), "fallen 3072 entries behind")
	step(placement.PromotionLag+1, time.Second)
	w.wants(t, w.look(), "65 entries behind")
	step(placement.PromotionLag, time.Second)
	w.wants(t, w.look(), "")
}

// TestReadyForgets (I9): what is remembered is of replicas that are there.
func TestReadyForgets(t *testing.T) {
	w := newReadyWorld(3)
	w.look()
	if len(w.r.groups) != 1 {
		t.Fatalf("%d groups are remembered", len(w.r.groups))
	}
	w.holds = false
	if w.look(); len(w.r.groups) != 0 {
		t.Errorf("%d groups are remembered of replicas that are gone", len(w.r.groups))
	}
}

func TestReadyReplicas(t *testing.T) {
	settled := func(w *readyWorld) { w.now = w.now.Add(time.Second); w.look() }
	lead := func(w *readyWorld, ready bool) {
		w.own.State, w.own.Leads, w.own.Leader, w.own.LeaderHeard = placement.ReplicaLeader, ready, 1, time.Time{}
	}
	for name, c := range map[string]struct {
		nodes  int
		change func(*readyWorld)
		silent bool // no leader is heard after the change
		want   string
	}{
		"a voter":  {nodes: 3, change: settled},
		"one node": {nodes: 1, change: func(w *readyWorld) { lead(w, true) }, silent: true},
		"a leader that has not applied what former ones committed": {nodes: 3, change: func(w *readyWorld) { lead(w, false) },
			silent: true, want: "has not heard"},
		"one that led a moment ago has nothing to catch up with": {nodes: 3, change: func(w *readyWorld) {
			lead(w, true)
			w.lookSilent()
			w.own.State, w.own.Leads, w.own.Leader = placement.ReplicaFollower, false, 2
		}, silent: true},
		"another replica in the place of one that had caught up": {nodes: 3, change: func(w *readyWorld) {
			settled(w)
			w.own.Key, w.own.Members[0].Key = replicaOf(9), replicaOf(9)
			w.own.LeaderCommit = w.own.Applied + placement.PromotionLag + 1
		}, want: "65 entries behind"},
		"another node is dead": {nodes: 3, change: func(w *readyWorld) {
			settled(w)
			w.v.Nodes[2].State = storage.NodeDown
		}},
		"its replica is lost": {nodes: 3, change: func(w *readyWorld) { w.holds = false }, want: "is not there"},
		"its replica is damaged": {nodes: 3, change: func(w *readyWorld) { w.own.State, w.own.Reason = placement.ReplicaDamaged, "its log is damaged" },
			want: "out of service: its log is damaged"},
		"its replica is no voter": {nodes: 3, change: func(w *readyWorld) { w.own.Members[0].Voter = false }, want: "not in the group's configuration"},
		"a manifest is pulled": {nodes: 3, change: func(w *readyWorld) {
			settled(w)
			w.own.PullBytes, w.own.PulledBytes = 68<<20, 61<<20
		}, want: "61 of 68 MiB"},
		"a silent leader": {nodes: 3, change: func(w *readyWorld) {
			w.now = w.now.Add(2 * leaderSilence)
			w.own.LeaderHeard = w.now.Add(-leaderSilence - time.Second)
		}, silent: true, want: "has not heard"},
		"a new leader must be heard": {nodes: 3, change: func(w *readyWorld) {
			settled(w)
			w.own.Leader = 0
			w.look() // that there is no leader is told by others
			w.own.Leader = 3
		}, want: "has not heard"},
		"a new disk, short of copies": {nodes: 3, change: func(w *readyWorld) {
			w.holds = false
			w.v.Groups[0].Replicas = w.v.Groups[0].Replicas[1:]
		}, want: "2 of 3 copies, and this node has none yet"},
		"a new disk, being filled": {nodes: 3, change: func(w *readyWorld) {
			w.v.Groups[0].Replicas[0].Role = storage.RolePulling
		}, want: "2 of 3 copies, and the next is being made on this node"},
		"a second node, which nothing waits for": {nodes: 2, change: func(w *readyWorld) {
			w.holds = false
			w.v.Groups[0].Replicas = w.v.Groups[0].Replicas[1:]
		}},
		"a fourth node, which nothing waits for": {nodes: 4, change: func(w *readyWorld) {
			w.holds = false
			w.v.Groups[0].Replicas[0].Node = 4
		}},
		"a fourth node and another one dead": {nodes: 4, change: func(w *readyWorld) {
			w.holds = false
			w.v.Groups[0].Replicas = w.v.Groups[0].Replicas[1:]
			w.v.Nodes[3].State = storage.NodeDown
		}},
		"a replica that is moved here": {nodes: 4, change: func(w *readyWorld) {
			w.v.Groups[0].Replicas[0].Node = 4
			w.v.Groups[0].Replicas = append(w.v.Groups[0].Replicas, storage.Replica{Node: 1, Role: storage.RolePulling})
		}},
		"a replica that leaves": {nodes: 4, change: func(w *readyWorld) {
			w.v.Groups[0].Replicas[0].Role = storage.RoleLeaving
			w.v.Groups[0].Replicas = append(w.v.Groups[0].Replicas, storage.Replica{Node: 4, Role: storage.RoleVoter})
		}},
		"a replica that leaves, whose successor is not there yet": {nodes: 4, change: func(w *readyWorld) {
			w.v.Groups[0].Replicas[0].Role = storage.RoleLeaving
		}},
		"a voter on a node that is drained, which counts no more": {nodes: 4, change: func(w *readyWorld) {
			w.holds = false
			w.v.Groups[0].Replicas[0].Node = 4
			w.v.Nodes[3].Intent = storage.IntentDrain
		}, want: "2 of 3 copies, and this node has none yet"},
		"a node that is drained, of four": {nodes: 4, change: func(w *readyWorld) {
			w.holds = false
			w.v.Nodes[0].Intent = storage.IntentDrain
			w.v.Groups[0].Replicas = w.v.Groups[0].Replicas[1:]
		}},
		"a node that is drained": {nodes: 3, change: func(w *readyWorld) {
			w.holds = false
			w.v.Nodes[0].Intent = storage.IntentDrain
			w.v.Groups[0].Replicas = w.v.Groups[0].Replicas[1:]
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newReadyWorld(c.nodes)
			c.change(w)
			if c.silent {
				w.wants(t, w.lookSilent(), c.want)
				return
			}
			if name != "a new leader must be heard" {
				w.now = w.now.Add(time.Second)
			}
			w.wants(t, w.look(), c.want)
		})
	}
}
