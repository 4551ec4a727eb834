// Package placementtest is a small model of nodes that hold replicas, for tests of what places them: it carries
// orders out, reports like nodes do, and writes down every order that would have cost data or availability.
//
// It models configurations, leaders and how far replicas are, not logs or data. A World may be used concurrently.
package placementtest

import (
	"fmt"
	"slices"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// World is the nodes and what they hold.
type World struct {
	mu         sync.Mutex // guards everything below
	nodes      map[storage.NodeID]*node
	groups     map[storage.GroupID]*group
	violations []string
}

type node struct {
	up       bool
	failed   bool // its disk
	store    storage.StoreID
	replicas map[storage.GroupID]*replica
	// used is the highest incarnation of a group the store has ever held; it holds none at or below it again.
	used map[storage.GroupID]storage.Incarnation
}

type replica struct {
	key     catalog.ReplicaKey
	last    uint64 // 0: empty
	damaged bool   // it neither votes nor acknowledges, for good
}

type group struct {
	members     []placement.Member
	configIndex uint64
	last        uint64
	term        uint64
	leader      storage.NodeID
}

// New returns a world without nodes.
func New() *World {
	return &World{nodes: map[storage.NodeID]*node{}, groups: map[storage.GroupID]*group{}}
}

// AddNode adds a node that is up, with one store.
func (w *World) AddNode(id storage.NodeID, store storage.StoreID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[id] = &node{up: true, store: store, replicas: map[storage.GroupID]*replica{},
		used: map[storage.GroupID]storage.Incarnation{}}
}

// SetUp starts or stops a node. Groups whose leader stopped elect another one, if they can; all followers that are up
// catch up.
func (w *World) SetUp(id storage.NodeID, up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[id].up = up
	for gid, g := range w.groups {
		w.electLocked(gid, g)
		if g.leader != 0 {
			w.followLocked(gid, g)
		}
	}
}

// Damage makes a node's replica of a group one that has lost something it acknowledged. It reports whether the group
// has a leader afterwards.
func (w *World) Damage(id storage.NodeID, group storage.GroupID) (led bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.nodes[id].replicas[group]; r != nil {
		r.damaged = true
	}
	return w.settleLocked(group)
}

// Damaged reports whether a node's replica of a group is damaged.
func (w *World) Damaged(id storage.NodeID, group storage.GroupID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.nodes[id].replicas[group]
	return r != nil && r.damaged
}

// FailDisk takes a node's disk out of service, with all replicas on it.
func (w *World) FailDisk(id storage.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[id].failed = true
	for gid := range w.groups {
		w.settleLocked(gid)
	}
}

// Spare reports whether a group goes on when a node's replica is lost.
func (w *World) Spare(id storage.NodeID, group storage.GroupID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.groups[group]
	if g == nil {
		return false
	}
	voters, well := 0, 0
	for _, m := range g.members {
		if m.Voter {
			voters++
			if m.Node != id && w.worksLocked(group, m) {
				well++
			}
		}
	}
	return well > voters/2
}

func (w *World) settleLocked(id storage.GroupID) (led bool) {
	g := w.groups[id]
	if g == nil {
		return false
	}
	w.electLocked(id, g)
	return g.leader != 0
}

// worksLocked reports whether a member votes and acknowledges.
func (w *World) worksLocked(id storage.GroupID, m placement.Member) bool {
	r := w.replicaLocked(id, m)
	return r != nil && !r.damaged && w.nodes[m.Node].up && !w.nodes[m.Node].failed
}

// Up reports whether a node runs.
func (w *World) Up(id storage.NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[id].up
}

// Write appends entries to a group, which must lead; replicas that are up follow at once, up to lag entries.
func (w *World) Write(id storage.GroupID, entries, lag uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.groups[id]
	if g == nil || g.leader == 0 {
		return
	}
	g.last += entries
	for _, m := range g.members {
		if r := w.replicaLocked(id, m); w.worksLocked(id, m) {
			r.last = max(r.last, g.last-min(lag, g.last-1))
		}
	}
	w.replicaLocked(id, placement.Member{Node: g.leader, Key: g.key(g.leader)}).last = g.last
}

// Violations returns the orders that should not have been given.
func (w *World) Violations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.violations)
}

// Voters returns the nodes that vote in a group, and its leader.
func (w *World) Voters(id storage.GroupID) (voters []storage.NodeID, leader storage.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.groups[id]
	if g == nil {
		return nil, 0
	}
	for _, m := range g.members {
		if m.Voter {
			voters = append(voters, m.Node)
		}
	}
	return voters, g.leader
}

// Holds reports whether the node has a replica of the group.
func (w *World) Holds(id storage.NodeID, group storage.GroupID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[id].replicas[group] != nil
}

// Report returns what a node would report; ok is false while it is stopped.
func (w *World) Report(id storage.NodeID) (report placement.NodeReport, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[id]
	if n == nil || !n.up {
		return placement.NodeReport{}, false
	}
	report = placement.NodeReport{Node: id, Stores: []placement.StoreReport{{ID: catalog.StoreText(n.store),
		CapacityBytes: 1 << 40, UsedBytes: 1 << 30, FreeBytes: 1<<40 - 1<<30}}}
	if n.failed {
		report.Stores[0].Failed = "EIO"
	}
	for gid, r := range n.replicas {
		x := placement.ReplicaReport{Group: gid, Key: r.key, State: placement.ReplicaFollower, Last: r.last}
		if g := w.groups[gid]; g != nil {
			x.Term, x.Leader = g.term, g.leader
			if g.leader == id && r.key == g.key(id) {
				x.State, x.Members, x.ConfigIndex = placement.ReplicaLeader, slices.Clone(g.members), g.configIndex
				for i, m := range x.Members {
					if f := w.replicaLocked(gid, m); w.worksLocked(gid, m) {
						x.Members[i].AckedIndex = f.last
					}
				}
			}
		}
		if n.failed {
			x.State, x.Reason = placement.ReplicaStopped, "its disk has failed"
		} else if r.damaged {
			x.State, x.Reason = placement.ReplicaDamaged, "its log is damaged"
		}
		report.Replicas = append(report.Replicas, x)
	}
	slices.SortFunc(report.Replicas, func(a, b placement.ReplicaReport) int { return int(a.Group) - int(b.Group) })
	return report, true
}

// Bootstrap makes a group with one voter.
func (w *World) Bootstrap(id storage.GroupID, on storage.NodeID, key catalog.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.upLocked(on)
	if err != nil {
		return err
	}
	if r := n.replicas[id]; r != nil && r.key == key {
		return nil
	}
	if err := n.hold(id, &replica{key: key, last: 1}); err != nil {
		return err
	}
	if g := w.groups[id]; g != nil {
		w.violateLocked("group %s was bootstrapped again as %s, beside %v", id, key, g.members)
		return nil
	}
	w.groups[id] = &group{members: []placement.Member{{Key: key, Node: on, Voter: true}}, configIndex: 1, last: 1, term: 1, leader: on}
	return nil
}

// Create has a node pull a replica.
func (w *World) Create(id storage.GroupID, on storage.NodeID, key catalog.ReplicaKey, source storage.NodeID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.upLocked(on)
	if err != nil {
		return err
	}
	from, err := w.upLocked(source)
	if err != nil {
		return err
	}
	if r := n.replicas[id]; r != nil {
		if r.key != key {
			return unavailable("node %s holds replica %s of group %s", on, r.key, id)
		}
		return nil
	}
	src := from.replicas[id]
	if src == nil || src.last == 0 || src.damaged || from.failed || n.failed {
		return unavailable("node %s has nothing of group %s to pull", source, id)
	}
	return n.hold(id, &replica{key: key, last: src.last})
}

// hold makes a replica unless the store has held it, or a later one, before.
func (n *node) hold(id storage.GroupID, r *replica) error {
	if r.key.Incarnation <= n.used[id] {
		return unavailable("store %s has held incarnation %d of group %s", n.store, n.used[id], id)
	}
	n.replicas[id], n.used[id] = r, r.key.Incarnation
	return nil
}

// Drop deletes a replica.
func (w *World) Drop(id storage.GroupID, on storage.NodeID, key catalog.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.upLocked(on)
	if err != nil {
		return err
	}
	if g := w.groups[id]; g != nil {
		if at := g.find(key); at >= 0 && g.members[at].Voter { // what a non-voter holds counts for nothing
			w.violateLocked("group %s: replica %s is dropped while it votes", id, key)
		}
	}
	if n.failed {
		return unavailable("the disk of node %s has failed", on)
	}
	if r := n.replicas[id]; r != nil && r.key == key {
		delete(n.replicas, id)
	}
	return nil
}

// AddLearner adds a non-voter.
func (w *World) AddLearner(id storage.GroupID, leader, on storage.NodeID, key catalog.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil || g.find(key) >= 0 {
		return err
	}
	m := placement.Member{Key: key, Node: on}
	// One that was dropped meanwhile may join when the order is late: it cannot be promoted, and is taken out again.
	if r := w.replicaLocked(id, m); r != nil && r.last == 0 || r == nil && w.nodes[on].used[id] < key.Incarnation {
		w.violateLocked("group %s: replica %s joins empty", id, key)
	}
	g.change(append(slices.Clone(g.members), m))
	w.followLocked(id, g)
	return nil
}

// AddVoter makes a non-voter a voter.
func (w *World) AddVoter(id storage.GroupID, leader storage.NodeID, key catalog.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil {
		return err
	}
	at := g.find(key)
	switch {
	case at < 0:
		return unavailable("replica %s is no member of group %s", key, id)
	case g.members[at].Voter:
		return nil
	}
	if r := w.replicaLocked(id, g.members[at]); !w.worksLocked(id, g.members[at]) || r.last+placement.PromotionLag < g.last {
		return unavailable("replica %s has not caught up", key) // as a leader answers that knows better than the report
	}
	next := slices.Clone(g.members)
	next[at].Voter = true
	g.change(next)
	w.followLocked(id, g)
	return nil
}

// Remove takes a member out. Removing a voter the group needs is written down.
func (w *World) Remove(id storage.GroupID, leader storage.NodeID, key catalog.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil {
		return err
	}
	at := g.find(key)
	if at < 0 {
		return nil
	}
	if g.members[at].Node == leader {
		return unavailable("group %s: the leader is not removed", id)
	}
	next := slices.Delete(slices.Clone(g.members), at, at+1)
	if g.members[at].Voter && !w.majorityLocked(id, next) {
		w.violateLocked("group %s: voter %s was removed though the others cannot commit", id, key)
	}
	g.change(next)
	w.followLocked(id, g)
	return nil
}

// Transfer makes another voter lead.
func (w *World) Transfer(id storage.GroupID, leader, to storage.NodeID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil {
		return err
	}
	for _, m := range g.members {
		if m.Node == to && m.Voter && w.worksLocked(id, m) {
			g.leader = to
			g.term++
			return nil
		}
	}
	return unavailable("node %s cannot lead group %s", to, id)
}

func (w *World) violateLocked(format string, args ...any) {
	w.violations = append(w.violations, fmt.Sprintf(format, args...))
}

func unavailable(format string, args ...any) error {
	return storage.E("order", storage.KindUnavailable, "", fmt.Errorf(format, args...))
}

func (w *World) upLocked(id storage.NodeID) (*node, error) {
	n := w.nodes[id]
	if n == nil || !n.up {
		return nil, unavailable("node %s does not answer", id)
	}
	return n, nil
}

func (w *World) ledByLocked(id storage.GroupID, leader storage.NodeID) (*group, error) {
	g := w.groups[id]
	if _, err := w.upLocked(leader); err != nil {
		return nil, err
	}
	if g == nil || g.leader != leader || !w.majorityLocked(id, g.members) {
		return nil, unavailable("node %s does not lead group %s", leader, id)
	}
	return g, nil
}

func (w *World) replicaLocked(id storage.GroupID, m placement.Member) *replica {
	n := w.nodes[m.Node]
	if n == nil {
		return nil
	}
	if r := n.replicas[id]; r != nil && r.key == m.Key {
		return r
	}
	return nil
}

// followLocked brings the replicas that are up to the leader's end.
func (w *World) followLocked(id storage.GroupID, g *group) {
	for _, m := range g.members {
		if r := w.replicaLocked(id, m); w.worksLocked(id, m) {
			r.last = g.last
		}
	}
}

func (w *World) majorityLocked(id storage.GroupID, members []placement.Member) bool {
	voters, up := 0, 0
	for _, m := range members {
		if !m.Voter {
			continue
		}
		voters++
		if r := w.replicaLocked(id, m); w.worksLocked(id, m) && r.last > 0 {
			up++
		}
	}
	return up > voters/2
}

func (w *World) electLocked(id storage.GroupID, g *group) {
	if g.leader != 0 && w.worksLocked(id, placement.Member{Node: g.leader, Key: g.key(g.leader)}) && w.majorityLocked(id, g.members) {
		return
	}
	g.leader = 0
	if !w.majorityLocked(id, g.members) {
		return
	}
	for _, m := range g.members {
		if r := w.replicaLocked(id, m); m.Voter && w.worksLocked(id, m) && (g.leader == 0 || r.last > w.nodes[g.leader].replicas[id].last) {
			g.leader = m.Node
		}
	}
	g.term++
	w.followLocked(id, g)
}

func (g *group) find(key catalog.ReplicaKey) int {
	return slices.IndexFunc(g.members, func(m placement.Member) bool { return m.Key == key })
}

func (g *group) key(on storage.NodeID) catalog.ReplicaKey {
	for _, m := range g.members {
		if m.Node == on {
			return m.Key
		}
	}
	return catalog.ReplicaKey{}
}

func (g *group) change(members []placement.Member) {
	g.last++
	g.members, g.configIndex = members, g.last
}
