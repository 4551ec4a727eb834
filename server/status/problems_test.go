package status

import (
	"slices"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// ready is what node 1 of three sees of itself when it lacks nothing of its group.
func ready() own {
	w := newReadyWorld(3)
	return own{now: w.now, self: 1, serving: true, fresh: catalog.Freshness{Leader: 2}, catalog: w.v, replicas: []Replica{w.own}}
}

// TestUnready has a case for each thing that keeps a node from being ready.
func TestUnready(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(o *own)
		want   []Problem
	}{
		{"it lacks nothing", func(*own) {}, nil},
		{"it does not serve", func(o *own) { o.serving = false }, []Problem{{"node", "it is starting or stopping"}}},
		{"a second process", func(o *own) { o.second = "copy/7 claims to be this node" },
			[]Problem{{"node", "copy/7 claims to be this node; this process keeps silent: stop one of the two"}}},
		{"no catalog yet", func(o *own) { o.unborn, o.fresh.Leader = "it was not sent the catalog yet", 0 },
			[]Problem{{"catalog", "it was not sent the catalog yet"}}},
		{"the catalog has no leader", func(o *own) { o.fresh.Leader = 0 },
			[]Problem{{"catalog", "it has no leader: a majority of its nodes must be up"}}},
		{"its leader was not heard", func(o *own) { o.fresh.Age = catalog.NeverHeard }, []Problem{{"catalog", "not heard from its leader yet"}}},
		{"no groups", func(o *own) { o.catalog.Groups, o.replicas = nil, nil }, []Problem{{"groups", "none yet"}}},
		{"a group that is made elsewhere", func(o *own) {
			o.catalog.Groups = append(o.catalog.Groups, storage.Group{ID: 2, State: storage.GroupCreating, Replicas: []storage.Replica{
				{Node: 2, Role: storage.RoleVoter}, {Node: 3, Role: storage.RoleVoter}, {Node: 4, Role: storage.RoleVoter}}})
		}, []Problem{{"group 2", "being made"}, {"group 2", "2 of 3 copies, and this node has none yet"}}},
		{"its replica is not there", func(o *own) { o.replicas = nil }, []Problem{{"group 1", "the replica that this node should have is not there"}}},
		{"its group has no leader", func(o *own) { o.replicas[0].Leader = 0 }, []Problem{{"group 1", "it has no leader"}}},
		{"a replica that was not told of its group", func(o *own) { o.replicas[0].Leader, o.replicas[0].Members = 0, nil },
			[]Problem{{"group 1", "this node's replica is not in the group's configuration yet"}}},
		{"several", func(o *own) { o.serving, o.fresh.Leader, o.replicas[0].Leader = false, 0, 0 }, []Problem{{"node", "it is starting or stopping"},
			{"catalog", "it has no leader: a majority of its nodes must be up"}, {"group 1", "it has no leader"}}},
	} {
		o := ready()
		c.change(&o)
		if got := o.unready(&readiness{}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestOwnHealth: a disk that has failed is unhealthy, and unready; damaged replicas and ports without room are mended by others.
func TestOwnHealth(t *testing.T) {
	w, v := newWorld(t)
	if bad, warned := v.Unhealthy(), v.Warnings(); bad != nil || warned != nil {
		t.Errorf("nothing is wrong: %q, %q", bad, warned)
	}
	w.failed, w.refusals = "input/output error", []string{"the NBD port is full"}
	w.replicas = []Replica{{ReplicaReport: placement.ReplicaReport{Group: 1, State: placement.ReplicaDamaged, Reason: "a hole at 7"}},
		{ReplicaReport: placement.ReplicaReport{Group: 2, State: placement.ReplicaStopped}}}
	disk := Problem{"store /data/store", "the disk has failed: input/output error"}
	if got := v.Unhealthy(); !slices.Equal(got, []Problem{disk}) {
		t.Errorf("unhealthy: %q", got)
	}
	if got := v.Unready(); !slices.Contains(got, disk) {
		t.Errorf("unready: %q", got)
	}
	if got, want := v.Warnings(), []Problem{{"group 1", "this node's replica is out of service until the group has made it anew: a hole at 7"},
		{"node", "the NBD port is full"}}; !slices.Equal(got, want) {
		t.Errorf("warnings: %q, want %q", got, want)
	}
}

// TestUnreadyLooks: what keeps a node from being ready is asked of its connections, of the catalog and of its replicas.
func TestUnreadyLooks(t *testing.T) {
	w, v := newWorld(t)
	makeGroup(w)
	w.second, w.neverLed, w.Fresh.Leader = &peer.SecondProcessError{}, true, 0
	w.replicas = []Replica{{ReplicaReport: placement.ReplicaReport{Group: 3, Members: []placement.Member{{Node: 1}}}}}
	got := v.Unready()
	for _, want := range []Problem{{"node", w.second.Error() + "; this process keeps silent: stop one of the two"}, {"catalog", v.unborn(w.Fresh)},
		{"group 2", "being made"}, {"group 1", "the replica that this node should have is not there"}, {"group 3", "it has no leader"}} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
}

// TestReport: a report says what the node is, has and lacks, and of problems the first, and how many more there are.
func TestReport(t *testing.T) {
	w, v := newWorld(t)
	w.failed, w.refusals = "input/output error", []string{"the NBD port is full"}
	for g := storage.GroupID(1); g <= placement.MaxUnready; g++ {
		w.replicas = append(w.replicas, Replica{ReplicaReport: placement.ReplicaReport{Group: g, Members: []placement.Member{{Node: 1}}}, LeaderHeard: time.Now()})
	}
	r := v.Report()
	if r.Node != 1 || r.Version == "" || len(r.Stores) != 1 || r.Stores[0].Failed != w.failed || len(r.Replicas) != len(w.replicas) || r.Replicas[1].Group != 2 ||
		!slices.Equal(r.Sessions, []storage.SessionID{5}) || len(r.Connections) != 1 || !slices.Equal(r.Refusing, w.refusals) {
		t.Errorf("reported: %+v", r)
	}
	if n := len(r.Unready); n != placement.MaxUnready || r.Unready[0] != "store /data/store: the disk has failed: input/output error" || r.Unready[n-1] != "and 3 more" {
		t.Errorf("unready: %q", r.Unready)
	}
	for _, c := range []struct{ problems, lines int }{{0, 0}, {placement.MaxUnready, placement.MaxUnready}, {placement.MaxUnready + 1, placement.MaxUnready}} {
		lines := unreadyLines(slices.Repeat([]Problem{{"node", "x"}}, c.problems))
		if len(lines) != c.lines {
			t.Errorf("of %d problems: %q", c.problems, lines)
		}
	}
}
