package status

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// firstStart is the picture of a cluster of three nodes that is being made: two groups are wanted.
func firstStart() *picture {
	p := &picture{now: time.Unix(1000, 0), self: 1, names: map[storage.NodeID]string{1: "a", 2: "b", 3: "c"},
		reports: map[storage.NodeID]placement.Heard{}, where: map[storage.NodeID]peer.Whereabouts{}}
	p.fresh.Leader = 1
	p.cluster = catalog.Cluster{ID: storage.ClusterID{1}, Replicas: 3, Groups: 2}
	for id := storage.NodeID(1); id <= 3; id++ {
		store := storage.StoreID{byte(id)}
		p.nodes = append(p.nodes, storage.Node{ID: id, Name: p.names[id], State: storage.NodeUp,
			Addrs: storage.Addrs{Peer: p.names[id] + ":7001"}, Stores: []storage.Store{{ID: store, CapacityBytes: 100 << 30}}})
		p.reports[id] = placement.Heard{Report: placement.NodeReport{Node: id, Stores: []placement.StoreReport{{ID: store,
			CapacityBytes: 100 << 30, UsedBytes: 40 << 30, FreeBytes: 60 << 30}}}}
	}
	return p
}

// whole is the picture of a cluster of three nodes and two groups that nothing is wrong with.
func whole() *picture {
	p := firstStart()
	for g := storage.GroupID(1); g <= 2; g++ {
		p.add(storage.GroupReady, 1, 2, 3)
		p.says(1, g, placement.ReplicaLeader, 2, 1)
		p.says(2, g, placement.ReplicaFollower, 2, 1)
		p.says(3, g, placement.ReplicaFollower, 2, 1)
	}
	return p
}

// add gives the picture a group of which the nodes are voters.
func (p *picture) add(state storage.GroupState, voters ...storage.NodeID) {
	g := storage.Group{ID: storage.GroupID(len(p.groups) + 1), State: state}
	for _, n := range voters {
		g.Replicas = append(g.Replicas, storage.Replica{Node: n, Key: replicaOf(n), Role: storage.RoleVoter})
	}
	p.groups = append(p.groups, g)
}

func replicaOf(n storage.NodeID) storage.ReplicaKey {
	return storage.ReplicaKey{Store: storage.StoreID{byte(n)}, Incarnation: storage.Incarnation(n)}
}

// says has a node report of its replica of a group.
func (p *picture) says(n storage.NodeID, g storage.GroupID, state placement.ReplicaState, term uint64, leader storage.NodeID) {
	p.report(n, func(r *placement.NodeReport) {
		r.Replicas = append(r.Replicas, placement.ReplicaReport{Group: g, Key: replicaOf(n), State: state, Term: term, Leader: leader})
	})
}

// report changes what a node reports.
func (p *picture) report(n storage.NodeID, change func(*placement.NodeReport)) {
	h := p.reports[n]
	h.Report.Replicas = slices.Clone(h.Report.Replicas)
	change(&h.Report)
	p.reports[n] = h
}

// space has a node say how much can still be written to its store, and what takes the room.
func (p *picture) space(n storage.NodeID, freeBytes int64, s storage.StoreSpace) {
	p.report(n, func(r *placement.NodeReport) {
		r.Stores = slices.Clone(r.Stores)
		r.Stores[0].FreeBytes, r.Stores[0].StoreSpace = freeBytes, s
	})
}

// ages makes a node's last report so old.
func (p *picture) ages(n storage.NodeID, age time.Duration) {
	h := p.reports[n]
	h.Age = age
	p.reports[n] = h
}

// silent takes the last report of a node away, and says what the catalog says of it.
func (p *picture) silent(n storage.NodeID, state storage.NodeState) {
	delete(p.reports, n)
	p.nodes[n-1].State = state
}

// damages has nodes say that the log of their replica of a group is damaged.
func (p *picture) damages(g storage.GroupID, nodes ...storage.NodeID) {
	for _, n := range nodes {
		p.report(n, func(r *placement.NodeReport) { r.Replicas[g-1].State = placement.ReplicaDamaged })
	}
}

// onlyHeard is a picture without the catalog's leader: node 1 has no report but its own.
func (p *picture) onlyHeard(leader storage.NodeID) {
	p.alone, p.fresh.Leader, p.reached = true, leader, map[storage.NodeID]bool{2: true, 3: true}
	delete(p.reports, 2)
	delete(p.reports, 3)
}

// TestJudgement has a case for each thing that may be wrong: what status says of it, in full, and nothing else. A case without a
// line holds that something is not said.
func TestJudgement(t *testing.T) {
	const (
		startingStep    = " > wait a moment; if it stays so, look at the other reasons, and at the log of the node that leads the catalog"
		unheardStep     = " > look whether storaged runs there, and whether the nodes reach each other's peer addresses"
		startStep       = " > start storaged there, and look at its log; if its address has changed, start it with --join and the address of a node that is up"
		majorityStep    = " > bring up nodes until a majority runs; `storagectl node list` shows them" + goOnWithout
		catalogRoomStep = " > make room on the file system of this node's data directory: remove what does not belong there, or enlarge it; the node then goes on by itself. Keep its data directory"
		damagedStep     = " > nothing while a majority of each group is up: the replicas are made again; run `storaged check`, and do not trust the disk"
		roomStepText    = " > discard what is not used (fstrim), delete volumes, or make its file system larger"
		leaderStep      = " > bring up the nodes that hold them; `storagectl group list` shows which" + goOnWithout
		unready         = "not ready: group 1: being made; group 2: 65 entries behind > wait before you stop another node; http://"
	)
	second := peer.Speaker{Process: "copy/7", Address: "b2:7001"}
	lines := []string{"group 1: being made", "group 2: 65 entries behind"}
	store := func(n byte) string { return storage.StoreID{n}.String() }
	for _, c := range []struct {
		name   string
		p      *picture
		change func(p *picture)
		want   []string
	}{
		{name: "all is well", p: whole()},

		{name: "this node has no catalog yet", p: &picture{self: 1, alone: true, unborn: "it chooses its first leader"},
			want: []string{"starting catalog: it chooses its first leader > wait a moment; if it stays so, look at the log of this node"}},
		{name: "the catalog has lost its leader", p: whole(), change: func(p *picture) { p.onlyHeard(0); p.fresh.Age = 31400 * time.Millisecond },
			want: []string{"critical catalog: it has no leader; what follows is what this node knew 31s ago" + majorityStep,
				"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "it had none since this node was started", p: whole(), change: func(p *picture) { p.onlyHeard(0); p.fresh.Age = catalog.NeverHeard },
			want: []string{"critical catalog: it has no leader; this node has heard no leader since it was started, and shows what its disk holds" + majorityStep,
				"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "nothing was read since this node was started", p: &picture{self: 1, alone: true, fresh: catalog.Freshness{Age: catalog.NeverHeard}},
			want: []string{"critical catalog: it has no leader; this node has not read it since it was started, so nodes, groups and volumes are not known" + majorityStep}},
		{name: "the catalog's log finds no room here, and nobody leads", p: whole(), change: func(p *picture) {
			p.onlyHeard(0)
			p.fresh.Age, p.catalogFull = 31400*time.Millisecond, true
		}, want: []string{"critical catalog: it has no leader, and its log finds no room on this node; what follows is what this node knew 31s ago" + catalogRoomStep,
			"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "the catalog's log finds no room here", p: whole(), change: func(p *picture) { p.fresh.Age, p.catalogFull = 31400*time.Millisecond, true },
			want: []string{"degraded catalog: its log finds no room on this node, which learns nothing new of it; what follows is what this node knew 31s ago" + catalogRoomStep}},
		{name: "the catalog's leader does not answer", p: whole(), change: func(p *picture) { p.onlyHeard(2) },
			want: []string{"degraded catalog: its leader does not answer; what follows is from this node's copy",
				"degraded groups 1, 2: fewer than 3 of their voters are up"}},

		{name: "a leader, and nothing in the catalog", p: firstStart(), change: func(p *picture) { p.cluster, p.nodes = catalog.Cluster{}, nil },
			want: []string{"starting cluster: its catalog is being made" + startingStep}},
		{name: "no group yet", p: firstStart(), want: []string{"starting cluster: it is being made: 0 of 2 groups have had their first leader" + startingStep}},
		{name: "a group that had no leader yet has lost none", p: firstStart(), change: func(p *picture) { p.add(storage.GroupCreating, 1) },
			want: []string{"starting cluster: it is being made: 0 of 2 groups have had their first leader" + startingStep}},
		{name: "more groups than were wanted at first", p: whole(), change: func(p *picture) { p.add(storage.GroupCreating, 1) },
			want: []string{"starting cluster: it is being made: 2 of 3 groups have had their first leader" + startingStep}},
		{name: "an old copy does not say that anything is being made", p: firstStart(), change: func(p *picture) { p.onlyHeard(2) },
			want: []string{"degraded catalog: its leader does not answer; what follows is from this node's copy"}},
		{name: "one of two groups had a leader, and lost it", p: firstStart(), change: func(p *picture) {
			p.add(storage.GroupReady, 1)
			p.add(storage.GroupCreating, 1)
		}, want: []string{"critical groups 1: no leader: their extents cannot be read or written" + leaderStep,
			"starting cluster: it is being made: 1 of 2 groups have had their first leader" + startingStep,
			"degraded groups 1: fewer than 3 of their voters are up"}},

		{name: "a node is down", p: whole(), change: func(p *picture) { p.silent(3, storage.NodeDown) },
			want: []string{"degraded node c: down" + startStep + "; only if its disk is lost, `storagectl node remove c`",
				"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "a node that drains", p: whole(), change: func(p *picture) { p.nodes[2].Intent = storage.IntentDrain },
			want: []string{"warning node c: draining: 2 of its replicas are not elsewhere yet > wait; `storagectl node drain c --dry-run` says where they go, " +
				"`storagectl node undrain c` ends it"}},
		{name: "a node that is down while it drains, and is replaced", p: whole(), change: func(p *picture) {
			p.nodes = append(p.nodes, storage.Node{ID: 4, Name: "d", State: storage.NodeUp})
			p.report(4, func(*placement.NodeReport) {})
			p.nodes[2].Intent = storage.IntentDrain
			p.silent(3, storage.NodeDown)
		}, want: []string{"degraded node c: down while it drains; its replicas are made anew on other nodes" + startStep + "; only if its disk is lost, `storagectl node remove c`",
			"degraded groups 1, 2: fewer than 3 of their voters are up",
			"warning node c: draining: 2 of its replicas are not elsewhere yet > wait; `storagectl node drain c --dry-run` says where they go, `storagectl node undrain c` ends it"}},
		{name: "a node that has drained", p: whole(), change: func(p *picture) {
			p.nodes = append(p.nodes, p.nodes[2])
			p.nodes[3].ID, p.nodes[3].Name, p.nodes[3].Intent, p.nodes[3].Stores = 4, "d", storage.IntentDrain, nil
			p.report(4, func(*placement.NodeReport) {})
		}, want: []string{"warning node d: it has drained: it holds no data > `storagectl node remove d`, and stop storaged there; or `storagectl node undrain d`"}},
		{name: "a node in maintenance", p: whole(), change: func(p *picture) {
			p.nodes[2].Intent, p.nodes[2].IntentUntil = storage.IntentMaintenance, time.Date(2024, 5, 6, 7, 8, 0, 0, time.UTC)
		}, want: []string{"warning node c: in maintenance until 2024-05-06 07:08 UTC: it gets nothing new, and leads nothing > when it is done, `storagectl node maintenance c --end`"}},
		{name: "a node in maintenance that still leads", p: whole(), change: func(p *picture) {
			p.nodes[0].Intent, p.nodes[0].IntentUntil = storage.IntentMaintenance, time.Date(2024, 5, 6, 7, 8, 0, 0, time.UTC)
		}, want: []string{"warning node a: in maintenance until 2024-05-06 07:08 UTC: it gets nothing new, and still leads 2 groups > when it is done, `storagectl node maintenance a --end`"}},
		{name: "a node in maintenance that is down", p: whole(), change: func(p *picture) {
			p.nodes[2].Intent, p.nodes[2].IntentUntil = storage.IntentMaintenance, time.Date(2024, 5, 6, 7, 8, 0, 0, time.UTC)
			p.repairAfter = time.Minute
			p.silent(3, storage.NodeDown)
		}, want: []string{"degraded node c: down, in maintenance; its replicas are not made anew before 2024-05-06 07:08 UTC > start storaged there before that, or give " +
			"it longer: `storagectl node maintenance c --for 2h`", "degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "a node that was removed", p: whole(), change: func(p *picture) {
			p.nodes = append(p.nodes, storage.Node{ID: 4, Name: "d", State: storage.NodeRemoved})
		}},
		{name: "a node without a report", p: whole(), change: func(p *picture) { p.silent(3, storage.NodeUp) },
			want: []string{"degraded node c: no report of it; node a does not know whether it is up" + unheardStep,
				"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "alone, a node that is not reached", p: whole(), change: func(p *picture) { p.onlyHeard(2); p.reached[3] = false },
			want: []string{"degraded catalog: its leader does not answer; what follows is from this node's copy",
				"degraded node c: no report of it; node a does not know whether it is up" + unheardStep,
				"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "a node that was down, and is moved", p: whole(), change: func(p *picture) {
			p.silent(3, storage.NodeDown)
			p.where[3] = peer.Whereabouts{Speaker: peer.Speaker{Address: "c2:7001"}, Connected: true, Reached: true}
		}, want: []string{"degraded node c: down: it has moved from c:7001 to c2:7001 and comes back > wait",
			"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "a node that nobody reported, and that is moved", p: whole(), change: func(p *picture) {
			p.silent(3, storage.NodeUp)
			p.where[3] = peer.Whereabouts{Speaker: peer.Speaker{Address: "c2:7001"}, Connected: true, Reached: true}
		}, want: []string{"degraded node c: it has moved from c:7001 to c2:7001 and comes back > wait",
			"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "a copy of a node that is up", p: whole(), change: func(p *picture) {
			p.where[2] = peer.Whereabouts{Speaker: peer.Speaker{Process: "host/5", Address: "b:7001"}, Connected: true, Second: &second}
		}, want: []string{"degraded node b: a second process with its identity is refused: copy/7 at b2:7001; the first is host/5 at b:7001" +
			" > stop the second one: its data directory is a copy. If it is the copy that is to go on, stop the first"}},

		{name: "a node that is not ready", p: whole(), change: func(p *picture) {
			p.nodes[1].Addrs.HTTP = "b:7002"
			p.report(2, func(r *placement.NodeReport) { r.Unready = lines })
		}, want: []string{"degraded node b: " + unready + "b:7002/readyz tells when it is"}},
		{name: "a node that is not ready while groups are made", p: firstStart(), change: func(p *picture) {
			p.report(2, func(r *placement.NodeReport) { r.Unready = lines })
		}, want: []string{"starting cluster: it is being made: 0 of 2 groups have had their first leader" + startingStep,
			"starting node b: " + unready + "NODE/readyz tells when it is"}},
		{name: "a node that is not up and was not ready", p: whole(), change: func(p *picture) {
			p.nodes[1].State = storage.NodeSuspect
			p.report(2, func(r *placement.NodeReport) { r.Unready = lines })
		}, want: []string{"degraded node b: suspect" + startStep}},
		{name: "alone, this node is not ready", p: whole(), change: func(p *picture) {
			p.onlyHeard(2)
			p.report(1, func(r *placement.NodeReport) { r.Unready = lines })
		}, want: []string{"degraded catalog: its leader does not answer; what follows is from this node's copy",
			"degraded groups 1, 2: fewer than 3 of their voters are up"}},

		{name: "a port without room", p: whole(), change: func(p *picture) {
			p.report(2, func(r *placement.NodeReport) { r.Refusing = []string{"the NBD port is full"} })
		}, want: []string{"degraded node b: the NBD port is full > see who holds connections there that are not used (ss -tn), or raise the limit " +
			"of open files and --nbd-max-connections; the node's log says how they are shared out"}},
		{name: "a port that had no room once", p: whole(), change: func(p *picture) {
			p.report(2, func(r *placement.NodeReport) { r.Refusing = []string{"the NBD port is full"} })
			p.ages(2, staleReport)
		}, want: []string{"degraded groups 1, 2: fewer than 3 of their voters are up"}},

		{name: "a disk has failed", p: whole(), change: func(p *picture) {
			p.report(2, func(r *placement.NodeReport) { r.Stores[0].Failed = "input/output error" })
		}, want: []string{"degraded store " + store(2) + ": the disk of node b has failed > the log of b says what the system reported; if that has passed " +
			"(a cable, a full pool, no descriptors left), start storaged there again; otherwise replace the disk, start storaged with an empty data " +
			"directory and --join under a new name, and remove this node with `storagectl node remove b` once it is down"}},
		{name: "a disk is full", p: whole(), change: func(p *picture) {
			p.report(2, func(r *placement.NodeReport) { r.Stores[0].FreeBytes = fullBytes - 1 })
		}, want: []string{"critical store " + store(2) + ": the disk of node b is full up to its reserve: writes are refused" + roomStepText}},
		{name: "a disk with room for one more write", p: whole(), change: func(p *picture) {
			p.report(2, func(r *placement.NodeReport) { r.Stores[0].FreeBytes = fullBytes })
		}},

		{name: "a disk without compaction that is full, and full of garbage", p: whole(), change: func(p *picture) {
			p.space(2, fullBytes-1, storage.StoreSpace{Compaction: storage.CompactionOff, GarbageBytes: 30 << 30, Fill: 1})
		}, want: []string{"critical store " + store(2) + ": the disk of node b is full up to its reserve: writes are refused" + roomStepText +
			"; or start the node with compaction: 30GiB of it is garbage"}},
		{name: "a disk that is full of what lives", p: whole(), change: func(p *picture) {
			p.space(2, 0, storage.StoreSpace{Compaction: storage.CompactionNothingToWin, UnusedBytes: 5 << 30, ReserveBytes: 1 << 30, Fill: 1.01})
		}, want: []string{"critical store " + store(2) + ": what lives takes all that it may of the disk of node b: new data is refused, overwrites go on for a while" + roomStepText}},
		{name: "a disk that other files have filled", p: whole(), change: func(p *picture) {
			p.space(2, 0, storage.StoreSpace{Compaction: storage.CompactionNothingToWin, OtherBytes: 70 << 30, UnusedBytes: 5 << 30, ReserveBytes: 1 << 30, Fill: 1.01})
		}, want: []string{"critical store " + store(2) + ": what lives takes all that it may of the disk of node b: new data is refused, overwrites go on for a while" +
			" > remove other files from its file system (70GiB); discard what is not used (fstrim), delete volumes, or make its file system larger"}},
		{name: "a file system that gives no room", p: whole(), change: func(p *picture) {
			p.space(2, 0, storage.StoreSpace{Compaction: storage.CompactionIdle, NoRoom: true, OtherBytes: 70 << 30, ReserveBytes: 1 << 30, Fill: 1})
		}, want: []string{"critical store " + store(2) + ": the file system of node b gives no more room, so writes are refused; nothing is lost" +
			" > make room on it: remove other files, or raise its quota; the node goes on by itself within seconds"}},
		{name: "a disk below its reserve on which room is made", p: whole(), change: func(p *picture) {
			p.space(2, 9<<30, storage.StoreSpace{Compaction: storage.CompactionBehind, UnusedBytes: 1<<30 + fullBytes - 1, ReserveBytes: 1 << 30, GarbageBytes: 12 << 30, Fill: 0.7})
		}, want: []string{"degraded store " + store(2) + ": writes to the disk of node b wait until compaction has made room: 12GiB of it is garbage" +
			" > wait; if it stays so, write less for a while, or discard what is not used (fstrim), delete volumes, or make its file system larger"}},
		{name: "a disk below its reserve on which no room is made", p: whole(), change: func(p *picture) {
			p.space(2, 9<<30, storage.StoreSpace{Compaction: storage.CompactionNoRoom, UnusedBytes: 100 << 20, ReserveBytes: 1 << 30, GarbageBytes: 12 << 30, Fill: 0.7})
		}, want: []string{"critical store " + store(2) + ": the disk of node b has 100MiB unused, its reserve is 1GiB, and compaction makes no room (no room): " +
			"new data is refused > look for groups without a majority and replicas that are pulled (`storagectl group list`), which hold what is dead; and " +
			"discard what is not used (fstrim), delete volumes, or make its file system larger"}},
		{name: "the same while nothing is found to be won", p: whole(), change: func(p *picture) {
			p.space(2, 9<<30, storage.StoreSpace{Compaction: storage.CompactionNothingToWin, UnusedBytes: 100 << 20, ReserveBytes: 1 << 30, GarbageBytes: 12 << 30, Fill: 0.7})
		}, want: []string{"critical store " + store(2) + ": the disk of node b has 100MiB unused, its reserve is 1GiB, and compaction makes no room (nothing to win): " +
			"new data is refused > look for groups without a majority and replicas that are pulled (`storagectl group list`), which hold what is dead; and " +
			"discard what is not used (fstrim), delete volumes, or make its file system larger"}},
		{name: "a disk below its reserve, of which what lives takes all that it may", p: whole(), change: func(p *picture) {
			p.space(2, 0, storage.StoreSpace{Compaction: storage.CompactionNothingToWin, UnusedBytes: 100 << 20, ReserveBytes: 1 << 30, Fill: 1})
		}, want: []string{"critical store " + store(2) + ": what lives takes all that it may of the disk of node b: new data is refused, overwrites go on for a while" + roomStepText}},
		{name: "a disk that others fill, while compaction still finds room", p: whole(), change: func(p *picture) {
			p.space(2, 9<<30, storage.StoreSpace{Compaction: storage.CompactionBehind, UnusedBytes: 100 << 20, ReserveBytes: 1 << 30, OtherBytes: 60 << 30, Fill: 0.7})
			p.report(2, func(r *placement.NodeReport) { r.Stores[0].Displaced = true })
		}, want: []string{"degraded store " + store(2) + ": files that are not storaged's fill the disk of node b: its copies fall behind, and writes go on with the others" +
			" > remove what does not belong on that file system, or enlarge it; the copies then catch up by themselves. Keep the data directory"}},
		{name: "a disk at its reserve to the byte", p: whole(), change: func(p *picture) {
			p.space(2, 9<<30, storage.StoreSpace{Compaction: storage.CompactionRunning, UnusedBytes: 1<<30 + fullBytes, ReserveBytes: 1 << 30, Fill: 0.7})
		}},
		{name: "a disk that fills up", p: whole(), change: func(p *picture) {
			p.space(2, 12<<30, storage.StoreSpace{Compaction: storage.CompactionRunning, UnusedBytes: 20 << 30, ReserveBytes: 1 << 30, Fill: warnFill})
		}, want: []string{"warning store " + store(2) + ": it refuses new data after about 12GiB more: 80 % of what may live on the disk of node b is taken" + roomStepText}},
		{name: "a disk that has room", p: whole(), change: func(p *picture) {
			p.space(2, 12<<30, storage.StoreSpace{Compaction: storage.CompactionRunning, UnusedBytes: 20 << 30, ReserveBytes: 1 << 30, Fill: warnFill - 0.001})
		}},
		{name: "a disk that other files fill", p: whole(), change: func(p *picture) {
			p.space(2, 12<<30, storage.StoreSpace{Compaction: storage.CompactionIdle, UnusedBytes: 20 << 30, ReserveBytes: 1 << 30, OtherBytes: 10<<30 + 1, Fill: 0.94})
		}, want: []string{"warning store " + store(2) + ": it refuses new data after about 12GiB more: 94 % of what may live on the disk of node b is taken; " +
			"other files have 10.0GiB of its file system > remove other files from its file system (10.0GiB); discard what is not used (fstrim), delete volumes, or make its file system larger"}},
		{name: "a disk that is nearly full", p: whole(), change: func(p *picture) {
			p.space(2, 3<<30, storage.StoreSpace{Compaction: storage.CompactionRunning, UnusedBytes: 20 << 30, ReserveBytes: 1 << 30, Fill: degradedFill})
		}, want: []string{"degraded store " + store(2) + ": it refuses new data after about 3GiB more: 95 % of what may live on the disk of node b is taken" + roomStepText}},
		{name: "a disk without compaction that fills up", p: whole(), change: func(p *picture) {
			p.space(2, 12<<30, storage.StoreSpace{Compaction: storage.CompactionOff, UnusedBytes: 13 << 30, ReserveBytes: 1 << 30, GarbageBytes: 10 << 30, Fill: 0.88})
		}, want: []string{"warning store " + store(2) + ": it refuses new data after about 12GiB more: 88 % of the disk of node b, its reserve left out, is taken" + roomStepText}},
		{name: "compaction that does not keep up", p: whole(), change: func(p *picture) {
			p.space(2, 12<<30, storage.StoreSpace{Compaction: storage.CompactionBehind, UnusedBytes: 3 << 30, ReserveBytes: 1 << 30, GarbageBytes: 40 << 30, Fill: 0.5})
		}, want: []string{"warning store " + store(2) + ": compaction on node b does not keep up with what is written: writes are about to wait; 40GiB is garbage" +
			" > wait; if it comes again and again, the disk is too slow or too full for this load"}},
		{name: "a full disk that has failed", p: whole(), change: func(p *picture) {
			p.space(2, 0, storage.StoreSpace{Compaction: storage.CompactionRunning, Fill: 1.2})
			p.report(2, func(r *placement.NodeReport) { r.Stores[0].Failed = "input/output error" })
		}, want: []string{"degraded store " + store(2) + ": the disk of node b has failed > the log of b says what the system reported; if that has passed " +
			"(a cable, a full pool, no descriptors left), start storaged there again; otherwise replace the disk, start storaged with an empty data " +
			"directory and --join under a new name, and remove this node with `storagectl node remove b` once it is down"}},

		{name: "fewer nodes than copies", p: whole(), change: func(p *picture) {
			p.nodes, p.groups = p.nodes[:2], p.groups[:0]
			p.add(storage.GroupReady, 1, 2)
			p.add(storage.GroupReady, 1, 2)
		}, want: []string{"degraded cluster: it has 2 of the 3 nodes that 3 copies of everything need > start more nodes with --join"}},

		{name: "a group without a leader", p: whole(), change: func(p *picture) {
			p.report(1, func(r *placement.NodeReport) { r.Replicas[1].State, r.Replicas[1].Term = placement.ReplicaCandidate, 3 })
		}, want: []string{"critical groups 2: no leader: their extents cannot be read or written" + leaderStep}},
		{name: "a group that grows", p: whole(), change: func(p *picture) { p.groups[1].Replicas[2].Role = storage.RoleLearner },
			want: []string{"degraded groups 2: fewer than 3 of their voters are up"}},
		{name: "a group that has no voters left", p: whole(), change: func(p *picture) { p.groups[1].Replicas = nil },
			want: []string{"critical groups 2: no leader: their extents cannot be read or written" + leaderStep,
				"degraded groups 2: fewer than 3 of their voters are up"}},
		{name: "a group with one voter more, which leaves", p: whole(), change: func(p *picture) {
			p.groups[1].Replicas = append(p.groups[1].Replicas, storage.Replica{Node: 4, Key: replicaOf(4), Role: storage.RoleLeaving})
		}},
		{name: "a log is damaged", p: whole(), change: func(p *picture) { p.damages(1, 3); p.damages(2, 3) },
			want: []string{"degraded node c: the log of its disk is damaged: its replicas of groups 1, 2 are out of service" + damagedStep,
				"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "an old report of a damaged log", p: whole(), change: func(p *picture) { p.damages(1, 3); p.ages(3, staleReport) },
			want: []string{"degraded groups 1, 2: fewer than 3 of their voters are up"}},
		{name: "two of three logs are damaged", p: whole(), change: func(p *picture) { p.damages(2, 2, 3) },
			want: []string{"critical groups 2: their logs are damaged on so many nodes that no majority of the copies is left: they stay out of service" +
				" > restore the volumes from a backup; keep the data directories, `storaged check` says what in them can be read",
				"degraded node b: the log of its disk is damaged: its replicas of groups 2 are out of service" + damagedStep,
				"degraded node c: the log of its disk is damaged: its replicas of groups 2 are out of service" + damagedStep,
				"degraded groups 2: fewer than 3 of their voters are up"}},
		{name: "one of two logs is damaged, and the other does for no majority", p: whole(), change: func(p *picture) {
			p.groups[1].Replicas = p.groups[1].Replicas[:2]
			p.damages(2, 2)
		}, want: []string{"critical groups 2: their logs are damaged on so many nodes that no majority of the copies is left: they stay out of service" +
			" > restore the volumes from a backup; keep the data directories, `storaged check` says what in them can be read",
			"degraded node b: the log of its disk is damaged: its replicas of groups 2 are out of service" + damagedStep,
			"degraded groups 2: fewer than 3 of their voters are up"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.change != nil {
				c.change(c.p)
			}
			s := c.p.status()
			health := api.HealthOK
			var got []string
			for i, r := range s.Reasons {
				if i == 0 {
					health = r.Severity
				}
				line := string(r.Severity) + " " + r.Subject + ": " + r.Text
				if r.NextStep != "" {
					line += " > " + r.NextStep
				}
				got = append(got, line)
			}
			for _, w := range s.Warnings {
				if w.Severity != api.HealthOK {
					t.Errorf("a warning of severity %q", w.Severity)
				}
				got = append(got, "warning "+w.Subject+": "+w.Text+" > "+w.NextStep)
			}
			if !slices.Equal(got, c.want) || s.Health != health {
				t.Errorf("%s:\n%s\nwant\n%s", s.Health, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestSums: what status counts, and what it leaves out of the sums because it is not known.
func TestSums(t *testing.T) {
	p := whole()
	p.add(storage.GroupCreating, 1)
	p.groups[1].Replicas[2].Role = storage.RolePulling
	p.report(3, func(r *placement.NodeReport) { r.Replicas[1].PulledBytes, r.Replicas[1].PullBytes = 3, 9 })
	p.groups[0].Replicas = append(p.groups[0].Replicas, storage.Replica{Node: 2, Key: replicaOf(2), Role: storage.RoleLearner})
	p.silent(3, storage.NodeDown)
	p.volumes = []storage.Volume{{SizeBytes: 5}, {SizeBytes: 7}}
	p.fresh = catalog.Freshness{Index: 17, Leader: 2, Age: time.Second}
	p.usable = 11
	s := p.status()
	s.Reasons = nil
	tasks := s.Tasks
	s.Tasks = nil
	want := api.Status{Version: catalog.BaseVersion, Health: api.HealthStarting, ReplicasWanted: 3, NodesTotal: 3, NodesUp: 2, GroupsTotal: 3, Volumes: 2,
		ProvisionedBytes: 12, UsableBytes: 11, CapacityBytes: 300 << 30, UsedBytes: 80 << 30, FreeBytes: 120 << 30, StoresUnknown: 1,
		CatalogLeader: 2, CatalogLeaderName: "b", CatalogIndex: 17, AnsweredBy: 1, AnsweredByName: "a", Age: time.Second}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("%+v\nwant\n%+v", s, want)
	}
	if len(tasks) != 2 || tasks[0].Step != "catching up" || tasks[0].NodeName != "b" || tasks[0].Group != 1 ||
		tasks[1].Step != "pulling" || tasks[1].NodeName != "c" || tasks[1].Group != 2 || tasks[1].Kind != api.TaskGrow {
		t.Errorf("tasks: %+v", tasks)
	}
	p.report(1, func(r *placement.NodeReport) { r.Knows = 6 })
	p.report(2, func(r *placement.NodeReport) { r.Knows = 5 })
	if s := p.status(); s.VersionKnown != 0 {
		t.Errorf("every node knows version %d, and one was not heard", s.VersionKnown)
	}
	p.nodes[2].State, p.cluster.Version = storage.NodeRemoved, 5
	if s := p.status(); s.Version != 5 || s.VersionKnown != 5 {
		t.Errorf("version %d is in force, and every node knows %d", s.Version, s.VersionKnown)
	}
	p.ages(2, time.Minute)
	if s := p.status(); s.VersionKnown != 0 {
		t.Errorf("every node knows version %d, and one was heard long ago", s.VersionKnown)
	}
	p.fresh.Age = catalog.NeverHeard
	if s := p.status(); s.Age != -1 {
		t.Errorf("no leader was heard %v ago", s.Age)
	}
	if s := whole().status(); s.GroupsFull != 2 || s.GroupsWithoutLeader != 0 || s.NodesUp != 3 || s.StoresUnknown != 0 {
		t.Errorf("of a whole cluster: %+v", s)
	}
	p = whole()
	p.report(1, func(r *placement.NodeReport) { r.Replicas = nil })
	if s := p.status(); s.GroupsFull != 0 || s.GroupsWithoutLeader != 2 {
		t.Errorf("%d groups are full and %d without a leader", s.GroupsFull, s.GroupsWithoutLeader)
	}
	p.onlyHeard(0)
	if s := p.status(); s.GroupsWithoutLeader != 0 {
		t.Errorf("alone: %d groups are without a leader, which this node cannot know", s.GroupsWithoutLeader)
	}
}

// TestFullest: the store that refuses first is named, and those that compact. A store that has failed takes nothing, and one that does
// not tell is not compared.
func TestFullest(t *testing.T) {
	p := whole()
	if s := p.status(); s.Fullest != nil || s.Compacting != nil || s.GarbageBytes != 0 {
		t.Errorf("nodes that do not tell: %+v", s)
	}
	p.space(1, 7<<30, storage.StoreSpace{Compaction: storage.CompactionOff, GarbageBytes: 1 << 30, Fill: 0.5})
	p.space(2, 5<<30, storage.StoreSpace{Compaction: storage.CompactionRunning, GarbageBytes: 2 << 30, Fill: 0.6})
	p.space(3, 6<<30, storage.StoreSpace{Compaction: storage.CompactionIdle, GarbageBytes: 4 << 30, Fill: 0.7})
	b := api.StoreRoom{Node: 2, NodeName: "b", Store: storage.StoreID{2}, FreeBytes: 5 << 30, Fill: 0.6, GarbageBytes: 2 << 30, Compaction: storage.CompactionRunning}
	if s := p.status(); *s.Fullest != b || !slices.Equal(s.Compacting, []api.StoreRoom{b}) || s.GarbageBytes != 7<<30 {
		t.Errorf("%+v %+v, %d bytes of garbage", s.Fullest, s.Compacting, s.GarbageBytes)
	}
	p.space(3, 6<<30, storage.StoreSpace{Compaction: storage.CompactionNothingToWin, GarbageBytes: 4 << 30, UnusedBytes: 6 << 30, Fill: 0.7})
	p.report(2, func(r *placement.NodeReport) { r.Stores[0].Failed = "input/output error" })
	if s := p.status(); s.Fullest.Node != 3 || s.Compacting != nil || s.GarbageBytes != 5<<30 || s.FreeBytes != 13<<30 {
		t.Errorf("with a failed store: %+v %+v, %d bytes of garbage, %d free", s.Fullest, s.Compacting, s.GarbageBytes, s.FreeBytes)
	}
}

// TestWhere: what is said of a node's addresses is of one that is connected, or was moved; a node that was killed a moment ago
// is only down.
func TestWhere(t *testing.T) {
	at := peer.Speaker{Instance: 7, Address: "b:7001"}
	old := peer.Speaker{Instance: 7, Address: "a:7001"}
	refused := errors.New("connection refused")
	for _, c := range []struct {
		name string
		up   bool
		w    peer.Whereabouts
		want string
	}{
		{"nothing heard", false, peer.Whereabouts{}, ""},
		{"nothing heard, and not reached", false, peer.Whereabouts{Connected: true, Err: refused}, ""},
		{"killed", false, peer.Whereabouts{Speaker: at, Err: refused, Since: 3 * time.Second}, ""},
		{"speaks, and is not reached", false, peer.Whereabouts{Speaker: at, Connected: true, Err: refused},
			"it speaks to this node, and is not reached at b:7001, which it says is its address: connection refused"},
		{"speaks, and is up", true, peer.Whereabouts{Speaker: at, Connected: true, Err: refused}, ""},
		{"speaks, and was not tried yet", false, peer.Whereabouts{Speaker: at, Connected: true}, ""},
		{"moved", false, peer.Whereabouts{Speaker: at, Connected: true, Reached: true}, "it has moved from a:7001 to b:7001"},
		{"without room", false, peer.Whereabouts{Speaker: at, Err: fmt.Errorf("greet: %w", peer.ErrWithoutRoom)}, "it runs, and cannot begin"},
		{"without room before, and up", true, peer.Whereabouts{Speaker: at, Reached: true, Err: peer.ErrWithoutRoom}, ""},
		{"moved, and up", true, peer.Whereabouts{Speaker: at, Connected: true, Reached: true}, ""},
		{"where it was", false, peer.Whereabouts{Speaker: old, Connected: true, Reached: true}, ""},
		{"moved long ago", false, peer.Whereabouts{Speaker: at, Reached: true, Since: whereMemory}, ""},
		{"a copy, whatever else", true, peer.Whereabouts{Speaker: at, Connected: true, Reached: true, Second: &old}, "a second process"},
	} {
		text, step := judgeWhere("b", c.up, "a:7001", c.w)
		if (text == "") != (c.want == "") || !strings.HasPrefix(text, c.want) || (step == "") != (text == "") {
			t.Errorf("%s: %q, %q, want %q", c.name, text, step, c.want)
		}
	}
}

// TestDisplaced: a disk that others fill is no reason to refuse writes while a majority has room, and none to give it up.
func TestDisplaced(t *testing.T) {
	for _, c := range []struct {
		full []storage.NodeID
		down storage.NodeID
		want api.Health
	}{
		{full: []storage.NodeID{3}, want: api.HealthDegraded},
		{full: []storage.NodeID{2, 3}, want: api.HealthCritical},
		{full: []storage.NodeID{3}, down: 2, want: api.HealthCritical},
	} {
		p := whole()
		for _, n := range c.full {
			p.reports[n].Report.Stores[0].FreeBytes, p.reports[n].Report.Stores[0].Displaced = 0, true
		}
		if c.down != 0 {
			p.nodes[c.down-1].State = storage.NodeDown
			delete(p.reports, c.down)
		}
		s := p.status()
		told := 0
		for _, r := range s.Reasons {
			if strings.Contains(r.Text, "not storaged's") {
				told++
				if r.Severity != c.want || !strings.Contains(r.NextStep, "Keep the data directory") {
					t.Errorf("%v, down %v: %+v", c.full, c.down, r)
				}
			}
		}
		if told != len(c.full) || s.Health != c.want {
			t.Errorf("%v, down %v: told of %d, health %v: %+v", c.full, c.down, told, s.Health, s.Reasons)
		}
	}
}

// TestAdviceWithoutRoom: nobody is told to give a disk up that is full.
func TestAdviceWithoutRoom(t *testing.T) {
	for _, state := range []storage.NodeState{storage.NodeSuspect, storage.NodeDown} {
		for _, free := range []int64{0, 1 << 30} {
			p := whole()
			p.nodes[2].State = state
			heard := p.reports[3]
			heard.Age, heard.Report.Stores[0].FreeBytes = time.Hour, free
			p.reports[3] = heard
			step := ""
			for _, r := range p.status().Reasons {
				if r.Subject == "node c" {
					step = r.NextStep
				}
			}
			lost := strings.Contains(step, "lost") || strings.Contains(step, "remove")
			if (free == 0) != strings.Contains(step, "make room") || lost != (free > 0 && state == storage.NodeDown) {
				t.Errorf("%v, %d bytes free: %q", state, free, step)
			}
		}
	}
}

// TestAdviceForAFailedDisk: nobody is told to throw away the only copy of anything, or one that a majority needs.
func TestAdviceForAFailedDisk(t *testing.T) {
	for _, c := range []struct {
		name    string
		up      []storage.NodeID
		members []storage.NodeID
		leaves  bool // the last member is about to leave, and votes until then
		want    bool
	}{
		{name: "the only copy", members: []storage.NodeID{1}, want: true},
		{name: "two others", up: []storage.NodeID{2, 3}, members: []storage.NodeID{1, 2, 3}},
		{name: "one other of three", up: []storage.NodeID{2}, members: []storage.NodeID{1, 2, 3}, want: true},
		{name: "one other of two", up: []storage.NodeID{2}, members: []storage.NodeID{1, 2}, want: true},
		{name: "nothing there", up: []storage.NodeID{2, 3, 4}, members: []storage.NodeID{2, 3, 4}},
		{name: "two others of four, of which one leaves", up: []storage.NodeID{2, 3}, members: []storage.NodeID{1, 2, 3, 4}, leaves: true, want: true},
	} {
		p := firstStart()
		p.add(storage.GroupReady, c.members...)
		p.groups[0].Replicas = append(p.groups[0].Replicas, storage.Replica{Node: 5, Key: replicaOf(5), Role: storage.RoleLearner}) // counts in nothing
		if c.leaves {
			p.groups[0].Replicas[len(c.members)-1].Role = storage.RoleLeaving
		}
		for _, n := range c.up {
			p.says(n, 1, placement.ReplicaFollower, 2, 0)
		}
		p.says(5, 1, placement.ReplicaFollower, 2, 0)
		needed := needed(p.apiGroups(), storage.StoreID{1})
		step := failedStep("a", needed)
		if (needed != 0) != c.want || strings.Contains(step, "node remove") == c.want || strings.Contains(step, "keep the data") != c.want {
			t.Errorf("%s: needed by %d: %s", c.name, needed, step)
		}
	}
}
