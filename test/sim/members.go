package sim

import (
	"context"
	"errors"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/runner"
)

// membership makes the changes of one group's members, one at a time, and repeats each until it is done: what the
// catalog's reconcilers do in a real cluster.
type membership struct {
	group storage.GroupID

	busy chan struct{}                          // holds a token while a change is made
	inc  storage.Incarnation                    // last given out; owned by the holder of busy, as here
	here map[storage.NodeID]storage.Incarnation // replicas that are members, or are to become
	left map[storage.NodeID]storage.Incarnation // replicas that are members no more, and still on their nodes
}

func newMembership(g storage.GroupID) *membership {
	return &membership{group: g, busy: make(chan struct{}, 1), here: map[storage.NodeID]storage.Incarnation{},
		left: map[storage.NodeID]storage.Incarnation{}}
}

func (m *membership) take() { m.busy <- struct{}{} }
func (m *membership) give() { <-m.busy }

// bootstrap makes the group's first replica.
func (r *run) bootstrap(m *membership) error {
	n := r.nodes[first(int(m.group)-1)-1]
	m.inc = 1
	m.here[n.id] = 1
	return n.p.Load().replicas.Bootstrap(context.Background(), m.group, storeID(n.id), 1)
}

// change makes the planned changes in their order.
func (r *run) change(ctx context.Context, m *membership, plan []Member) {
	began := time.Now()
	for _, c := range plan {
		if !r.sleep(ctx, time.Until(began.Add(c.At))) {
			return
		}
		r.note("group %d: node %d, remove %v", m.group, c.Node, c.Remove)
		m.take()
		if c.Remove {
			r.removeNow(ctx, m.group, r.nodes[c.Node-1])
		} else {
			r.growNow(ctx, m, r.nodes[c.Node-1])
		}
		m.give()
	}
}

// complete grows a group to three replicas, whatever state the load has left it in.
func (r *run) complete(ctx context.Context, m *membership) {
	m.take()
	defer m.give()
	for _, n := range r.nodes {
		r.growNow(ctx, m, n)
	}
}

// on runs one call on a process, and does not believe the answer of one that was killed meanwhile.
func on(n *node, call func(p *process) error) error {
	p := n.p.Load()
	if p == nil {
		return errors.New("the node is down")
	}
	err := call(p)
	if p.dead.Load() {
		return errors.New("the node was killed")
	}
	return err
}

// ready returns the node that leads the group with its Barrier done; nil if none does.
func (r *run) ready(g storage.GroupID) *node {
	n := r.leader(g, 0)
	if s, ok := n.status(g); ok && s.Ready {
		return n
	}
	return nil
}

// repeat calls step until it is done or ctx is.
func (r *run) repeat(ctx context.Context, step func() error) bool {
	for {
		err := step()
		if err == nil {
			return true
		}
		if !r.sleep(ctx, 50*time.Millisecond) {
			return false
		}
	}
}

var errNoLeader = errors.New("no leader is ready")

// growNow makes the node's replica a voter. The membership is taken.
func (r *run) growNow(ctx context.Context, m *membership, n *node) bool {
	if !r.clearNow(ctx, m, n) {
		return false
	}
	inc := m.here[n.id]
	if inc == 0 {
		m.inc++
		inc = m.inc
		m.here[n.id] = inc
	}
	id := string(replication.ServerID(storeID(n.id), inc))
	member := false
	return r.repeat(ctx, func() error {
		l := r.ready(m.group)
		if l == nil {
			return errNoLeader
		}
		if s, _ := l.status(m.group); l == n && string(s.Self) == id {
			return nil
		}
		if !member {
			create, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			err := on(n, func(p *process) error {
				p.changing <- struct{}{} // a node makes one replica at a time, under a lock on which virtual time cannot pass
				defer func() { <-p.changing }()
				return p.replicas.CreateReplica(create, m.group, storeID(n.id), inc, l.id)
			})
			if err != nil {
				return err
			}
		}
		change := func(c runner.Change) error {
			return on(l, func(p *process) error { return p.replicas.ChangeMembership(ctx, m.group, c, id, n.id, 0) })
		}
		if err := change(runner.AddNonvoter); err != nil {
			return err
		}
		member = true
		return change(runner.AddVoter)
	})
}

// removeNow takes the node's replica out of the group and then off the node. Its membership is taken.
func (r *run) removeNow(ctx context.Context, g storage.GroupID, n *node) bool {
	m := r.members[g-1]
	inc := m.here[n.id]
	if inc == 0 {
		return true
	}
	id := string(replication.ServerID(storeID(n.id), inc))
	out := r.repeat(ctx, func() error {
		l := r.ready(g)
		if l == nil {
			return errNoLeader
		}
		if s, _ := l.status(g); len(s.Replicas) < 2 {
			return nil // the last one stays
		}
		if l == n {
			a, b := r.others(n)
			for _, to := range []*node{a, b} {
				if _, ok := to.status(g); ok {
					r.transfer(g, n, to)
				}
			}
			return errors.New("the leader must move first")
		}
		err := on(l, func(p *process) error { return p.replicas.ChangeMembership(ctx, g, runner.RemoveServer, id, n.id, 0) })
		if err == nil {
			m.here[n.id], m.left[n.id] = 0, inc
		}
		return err
	})
	if !out || m.here[n.id] != 0 {
		return out
	}
	return r.clearNow(ctx, m, n)
}

// clearNow takes what is no member any more off the node. The membership is taken.
func (r *run) clearNow(ctx context.Context, m *membership, n *node) bool {
	inc := m.left[n.id]
	if inc == 0 {
		return true
	}
	return r.repeat(ctx, func() error {
		err := on(n, func(p *process) error {
			p.changing <- struct{}{}
			defer func() { <-p.changing }()
			return p.replicas.RemoveReplica(context.Background(), m.group, storeID(n.id), inc)
		})
		if err == nil {
			m.left[n.id] = 0
		}
		return err
	})
}
