// Package placementtest is a small model of nodes that hold replicas, for tests of the code that places them. It carries out
// orders, reports as nodes do, and records every order that would have cost data or availability.
//
// It models leaders, the length of each replica's log, the configurations in it, and what is committed. A configuration that a
// leader has appended takes effect at once, and may still be lost with that leader. It models no data. A World may be used
// concurrently.
package placementtest

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	storage "github.com/storaged/storaged"
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
	slow     bool // it answers and votes, and its disk takes nothing
	store    storage.StoreID
	replicas map[storage.GroupID]*replica
	// used is the highest incarnation of a group the store has ever held; it holds none at or below it again.
	used map[storage.GroupID]storage.Incarnation
}

// replica is a log, as far as it matters: its end, and the configurations in it.
type replica struct {
	key     storage.ReplicaKey
	last    uint64 // 0: empty
	term    uint64 // of the last entry
	configs []config
	acked   uint64 // what the leader of the present term has heard of it
	damaged bool   // it neither votes nor acknowledges, for good
}

// config is a configuration and its place in a log.
type config struct {
	index   uint64
	members []placement.Member
}

// majority reports whether more than half of the voters are as is asked.
func (c config) majority(is func(placement.Member) bool) bool {
	voters, n := 0, 0
	for _, m := range c.members {
		if m.Voter {
			voters++
			if is(m) {
				n++
			}
		}
	}
	return n > voters/2
}

// newest returns the configuration in force in the replica's own eyes.
func (r *replica) newest() config {
	if r == nil || len(r.configs) == 0 {
		return config{}
	}
	return r.configs[len(r.configs)-1]
}

// longer reports whether r's log is further than o's, in Raft's order.
func (r *replica) longer(o *replica) bool {
	return r.term > o.term || r.term == o.term && r.last > o.last
}

// copyOf takes o's log up to an index.
func (r *replica) copyOf(o *replica, upTo uint64) {
	r.last, r.term, r.configs = min(o.last, upTo), o.term, nil
	for _, c := range o.configs {
		if c.index <= upTo {
			r.configs = append(r.configs, c)
		}
	}
}

type group struct {
	term   uint64
	begun  uint64 // index of the first entry of the term
	commit uint64
	leader storage.NodeID // 0: nobody
	log    *replica       // the leader's, or that of the last one
}

// newest returns the newest configuration in the leader's log.
func (g *group) newest() config { return g.log.newest() }

// committed returns the newest configuration that nothing can take back.
func (g *group) committed() config {
	for _, c := range slices.Backward(g.log.configs) {
		if c.index <= g.commit {
			return c
		}
	}
	return config{}
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
	w.set(func() { w.nodes[id].up = up })
}

// set changes something of a node, and has all groups elect and follow.
func (w *World) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	for gid, g := range w.groups {
		w.electLocked(gid, g)
		w.followLocked(gid, g)
	}
}

// SetSlow makes a node's disk one that takes nothing for now: the node answers and votes, and acknowledges no entry. Nor
// can what its own groups append be committed with its help.
func (w *World) SetSlow(id storage.NodeID, slow bool) {
	w.set(func() { w.nodes[id].slow = slow })
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

// Spare reports whether a group goes on when a node's replica is lost, and other nodes end.
func (w *World) Spare(id storage.NodeID, group storage.GroupID, others ...storage.NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.groups[group]
	if g == nil {
		return false
	}
	return g.newest().majority(func(m placement.Member) bool {
		return m.Node != id && !slices.Contains(others, m.Node) && w.worksLocked(group, m)
	})
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
	g.log.last += entries
	g.log.term, g.log.acked = g.term, g.log.last
	for _, m := range g.newest().members {
		if r := w.replicaLocked(id, m); r != g.log && w.takesLocked(id, m) {
			if to := g.log.last - min(lag, g.log.last-1); to > r.last {
				r.copyOf(g.log, to)
				r.acked = to
			}
		}
	}
	w.countLocked(id, g)
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
	for _, m := range g.newest().members {
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
	report = placement.NodeReport{Node: id, Stores: []placement.StoreReport{{ID: n.store,
		CapacityBytes: 1 << 40, UsedBytes: 1 << 30, FreeBytes: 1<<40 - 1<<30}}}
	if n.failed {
		report.Stores[0].Failed = "EIO"
	}
	for gid, r := range n.replicas {
		x := placement.ReplicaReport{Group: gid, Key: r.key, State: placement.ReplicaFollower, Last: r.last}
		if g := w.groups[gid]; g != nil {
			x.Term, x.Leader = g.term, g.leader
			if g.leader == id && r == g.log {
				now := g.newest()
				x.State, x.Members, x.ConfigIndex, x.Commit = placement.ReplicaLeader, slices.Clone(now.members), now.index, g.commit
				for i, m := range x.Members {
					if f := w.replicaLocked(gid, m); w.worksLocked(gid, m) {
						x.Members[i].AckedIndex = f.acked
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
func (w *World) Bootstrap(id storage.GroupID, on storage.NodeID, key storage.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.upLocked(on)
	if err != nil {
		return err
	}
	if r := n.replicas[id]; r != nil && r.key == key {
		return nil
	}
	r := &replica{key: key, last: 1, term: 1, acked: 1, configs: []config{{1, []placement.Member{{Key: key, Node: on, Voter: true}}}}}
	if err := n.hold(id, r); err != nil {
		return err
	}
	if g := w.groups[id]; g != nil {
		w.violateLocked("group %s was bootstrapped again as %s, beside %v", id, key, g.newest().members)
		return nil
	}
	w.groups[id] = &group{term: 1, begun: 1, commit: 1, leader: on, log: r}
	return nil
}

// Create has a node pull a replica.
func (w *World) Create(id storage.GroupID, on storage.NodeID, key storage.ReplicaKey, source storage.NodeID) error {
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
	r := &replica{key: key}
	r.copyOf(src, w.groups[id].commit) // a manifest holds what was applied
	return n.hold(id, r)
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
func (w *World) Drop(id storage.GroupID, on storage.NodeID, key storage.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.upLocked(on)
	if err != nil {
		return err
	}
	if g := w.groups[id]; g != nil && w.votesLocked(id, g, key) { // what a non-voter holds counts for nothing
		w.violateLocked("group %s: replica %s is dropped while it votes", id, key)
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
func (w *World) AddLearner(id storage.GroupID, leader, on storage.NodeID, key storage.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil {
		return err
	}
	if g.find(key) >= 0 {
		return g.settled()
	}
	m := placement.Member{Key: key, Node: on}
	// One that was dropped meanwhile may join when the order is late: it cannot be promoted, and is taken out again.
	if r := w.replicaLocked(id, m); r != nil && r.last == 0 || r == nil && w.nodes[on].used[id] < key.Incarnation {
		w.violateLocked("group %s: replica %s joins empty", id, key)
	}
	return w.changeLocked(id, g, append(slices.Clone(g.newest().members), m))
}

// AddVoter makes a non-voter a voter.
func (w *World) AddVoter(id storage.GroupID, leader storage.NodeID, key storage.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil {
		return err
	}
	at, members := g.find(key), g.newest().members
	switch {
	case at < 0:
		return unavailable("replica %s is no member of group %s", key, id)
	case members[at].Voter:
		return g.settled()
	}
	if r := w.replicaLocked(id, members[at]); !w.worksLocked(id, members[at]) || r.acked == 0 || r.acked+placement.PromotionLag < g.log.last {
		return unavailable("replica %s has not caught up", key) // as a leader answers that knows better than the report
	}
	next := slices.Clone(members)
	next[at].Voter = true
	return w.changeLocked(id, g, next)
}

// Remove takes a member out. Removing a voter the group needs is written down.
func (w *World) Remove(id storage.GroupID, leader storage.NodeID, key storage.ReplicaKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil {
		return err
	}
	at, members := g.find(key), g.newest().members
	if at < 0 {
		return g.settled()
	}
	if members[at].Node == leader {
		return unavailable("group %s: the leader is not removed", id)
	}
	next := slices.Delete(slices.Clone(members), at, at+1)
	if members[at].Voter && !w.majorityLocked(id, next) {
		w.violateLocked("group %s: voter %s was removed though the others cannot commit", id, key)
	}
	return w.changeLocked(id, g, next)
}

// Transfer makes another voter lead.
func (w *World) Transfer(id storage.GroupID, leader, to storage.NodeID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, err := w.ledByLocked(id, leader)
	if err != nil {
		return err
	}
	for _, m := range g.newest().members {
		if r := w.replicaLocked(id, m); m.Node == to && m.Voter && w.worksLocked(id, m) && !g.log.longer(r) {
			w.beginLocked(id, g, to, r)
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
	if g == nil || g.leader != leader || !w.majorityLocked(id, g.newest().members) {
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

// takesLocked reports whether a member acknowledges entries now.
func (w *World) takesLocked(id storage.GroupID, m placement.Member) bool {
	return w.worksLocked(id, m) && !w.nodes[m.Node].slow
}

// votesLocked reports whether a replica is a voter for anybody who counts: in the committed configuration, or in a newer one
// in any log.
func (w *World) votesLocked(id storage.GroupID, g *group, key storage.ReplicaKey) bool {
	votes := func(c config) bool {
		return slices.ContainsFunc(c.members, func(m placement.Member) bool { return m.Key == key && m.Voter })
	}
	committed := g.committed()
	if votes(committed) {
		return true
	}
	for _, n := range w.nodes {
		if r := n.replicas[id]; r != nil && !r.damaged && r.key != key && r.newest().index > committed.index && votes(r.newest()) {
			return true
		}
	}
	return false
}

// followLocked brings the replicas that are up to the leader's end.
func (w *World) followLocked(id storage.GroupID, g *group) {
	if g.leader == 0 {
		return
	}
	for _, m := range g.newest().members {
		if r := w.replicaLocked(id, m); r != g.log && w.takesLocked(id, m) {
			r.copyOf(g.log, g.log.last)
			r.acked = r.last
		}
	}
	w.countLocked(id, g)
}

// countLocked commits what a majority of the newest configuration's voters hold, if it is of this term.
func (w *World) countLocked(id storage.GroupID, g *group) {
	var held []uint64
	for _, m := range g.newest().members {
		if !m.Voter {
			continue
		}
		var n uint64
		switch r := w.replicaLocked(id, m); {
		case r == nil || r.damaged:
		case r == g.log && w.nodes[m.Node].slow:
		default:
			n = r.acked
		}
		held = append(held, n)
	}
	slices.Sort(held)
	if len(held) == 0 {
		return
	}
	if n := held[(len(held)-1)/2]; n >= g.begun {
		g.commit = max(g.commit, n)
	}
}

func (w *World) majorityLocked(id storage.GroupID, members []placement.Member) bool {
	return config{members: members}.majority(func(m placement.Member) bool { return w.worksLocked(id, m) && w.replicaLocked(id, m).last > 0 })
}

func (w *World) electLocked(id storage.GroupID, g *group) {
	if g.leader != 0 && w.worksLocked(id, placement.Member{Node: g.leader, Key: g.log.key}) && w.majorityLocked(id, g.newest().members) {
		return
	}
	g.leader = 0
	var best *replica
	var at storage.NodeID
	for _, n := range slices.Sorted(maps.Keys(w.nodes)) {
		r := w.nodes[n].replicas[id]
		if r == nil || r.last == 0 || best != nil && !r.longer(best) || !w.electableLocked(id, n, r) {
			continue
		}
		best, at = r, n
	}
	if best != nil {
		w.beginLocked(id, g, at, best)
	}
}

// electableLocked reports whether a replica is a voter and gets the votes of a majority, by its own configuration.
func (w *World) electableLocked(id storage.GroupID, on storage.NodeID, r *replica) bool {
	self := false
	elected := r.newest().majority(func(m placement.Member) bool {
		votes := w.worksLocked(id, m) && !w.replicaLocked(id, m).longer(r)
		self = self || votes && m.Node == on && m.Key == r.key
		return votes
	})
	return self && elected
}

// beginLocked begins a term: the leader appends an entry of its own, and what the others hold beyond its log is lost.
func (w *World) beginLocked(id storage.GroupID, g *group, on storage.NodeID, r *replica) {
	g.term++
	g.leader, g.log = on, r
	r.last++
	r.term, g.begun = g.term, r.last
	for _, n := range w.nodes {
		if f := n.replicas[id]; f != nil {
			f.acked = 0
		}
	}
	r.acked = r.last
	w.followLocked(id, g)
}

func (g *group) find(key storage.ReplicaKey) int {
	return slices.IndexFunc(g.newest().members, func(m placement.Member) bool { return m.Key == key })
}

// settled returns nil if the newest configuration is committed: what was asked for before is done only then.
func (g *group) settled() error {
	if g.newest().index > g.commit {
		return unavailable("the configuration at %d is not committed", g.newest().index)
	}
	return nil
}

// changeLocked appends a configuration, which counts at once, and answers as a leader does that waits until it is
// committed, or for as long as it can.
func (w *World) changeLocked(id storage.GroupID, g *group, members []placement.Member) error {
	if err := g.settled(); err != nil {
		return err // one change at a time
	}
	g.log.last++
	g.log.term, g.log.acked = g.term, g.log.last
	g.log.configs = append(slices.Clone(g.log.configs), config{g.log.last, members})
	w.followLocked(id, g)
	return g.settled()
}
