package runner

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// What a leader may do, and when. These need a Transport, whose book of answers (lease) they read.

// watchLeadership opens the books of each term that this replica leads. It is ready once a Barrier has completed, because the
// library's applied index runs ahead of the state machine.
func (i *Instance) watchLeadership(notify <-chan bool) {
	for {
		select {
		case <-i.ctx.Done():
			return
		case leads := <-notify:
			if !leads {
				i.cfg.Logger.Info("leadership lost", "term", i.CurrentTerm())
			} else {
				i.becomeReady()
			}
			i.cfg.OnLeadership()
		}
	}
}

func (i *Instance) becomeReady() {
	term := i.CurrentTerm()
	i.transport.lease.begin(term)
	for i.LeadsTerm(term) {
		// No context: it ends when it is answered, with the leadership, or with the instance.
		_, err := Do(context.Background(), i, "lead", func(r *raft.Raft) raft.Future { return r.Barrier(0) })
		if err == nil && i.LeadsTerm(term) {
			i.transport.lease.setReady(term)
			i.cfg.Logger.Info("leads", "term", term)
			return
		}
		select {
		case <-i.ctx.Done():
			return
		case <-time.After(10 * time.Millisecond): // a transfer in progress refuses the Barrier for a while
		}
	}
}

// Ready reports whether this replica leads the term with its Barrier done.
func (i *Instance) Ready(term uint64) bool { return i.transport.lease.isReady(term) }

// Leading returns the term in which this replica leads and is ready; it waits for the Barrier.
func (i *Instance) Leading(ctx context.Context, op string) (term uint64, err error) {
	if !i.Leads() {
		return 0, i.notLeader(op, i.Leader())
	}
	term = i.CurrentTerm()
	if i.transport.cfg.Silent() {
		return 0, i.notLeader(op, 0) // others lead soon
	}
	if i.Ready(term) {
		return term, nil
	}
	ctx, cancel := context.WithTimeout(ctx, i.transport.cfg.HeartbeatTimeout)
	defer cancel()
	if l := i.transport.lease; l.await(ctx, term, func() bool { return l.ready }) && i.Leads() {
		return term, nil
	}
	return 0, i.notLeader(op, 0)
}

// HoldsLease reports whether the leader of a term may answer from its own table by what its followers have promised.
func (i *Instance) HoldsLease(term uint64) bool {
	return i.transport.lease.valid(term, i.self, i.Configuration(), time.Now()) && i.LeadsTerm(term) && !i.transport.cfg.Silent()
}

// MayRead reports whether the leader of a term may answer a read from its own table: its lease stands, or a majority confirms
// it after the call. With quorum the lease does not count.
func (i *Instance) MayRead(ctx context.Context, term uint64, quorum bool) bool {
	arrived := time.Now()
	// I1: take the lease check out, and a deposed leader that was frozen answers with what was true then.
	if !quorum && i.HoldsLease(term) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 2*i.transport.cfg.HeartbeatTimeout)
	defer cancel()
	i.ask(term) // raft.VerifyLeader counts answers to older requests, and waits for the next heartbeat
	return i.transport.lease.confirm(ctx, term, i.self, i.Configuration, arrived) && i.LeadsTerm(term) && !i.transport.cfg.Silent()
}

// asking sends heartbeats for those who wait for a majority: one round at a time, and another if someone came meanwhile.
type asking struct {
	mu      sync.Mutex
	running bool // guarded by mu, like again
	again   bool
}

// ask sends a heartbeat to every other voter now, or as soon as the round before has its first answer.
func (i *Instance) ask(term uint64) {
	a, t := &i.asking, i.transport
	a.mu.Lock()
	if a.running {
		a.again = true
		a.mu.Unlock()
		return
	}
	a.running = true
	a.mu.Unlock()
	ended := sync.OnceFunc(func() {
		a.mu.Lock()
		again := a.again && i.ctx.Err() == nil
		a.running, a.again = false, false
		a.mu.Unlock()
		if again {
			i.ask(term)
		}
	})
	asked := false
	for _, s := range i.Configuration().Servers {
		node, err := ParseNodeAddress(s.Address)
		if err != nil || s.ID == i.self || s.Suffrage != raft.Voter {
			continue
		}
		asked = true
		t.cfg.Dispatcher.heartbeat(t, node, s.ID, t.heartbeat(term), &raft.AppendEntriesResponse{}, func(error) { ended() })
	}
	if !asked {
		ended()
		return
	}
	t.cfg.Dispatcher.FlushHeartbeats()
}

// Acked returns the highest index that a server has acknowledged durable in this term; 0 for none.
func (i *Instance) Acked(server raft.ServerID) uint64 {
	if i.transport == nil {
		return 0
	}
	return i.transport.lease.ackedIndex(server)
}

// AwaitAcked waits until what a server has acknowledged in this term is enough; false when the term is over or ctx is done.
func (i *Instance) AwaitAcked(ctx context.Context, server raft.ServerID, enough func(acked uint64) bool) bool {
	l := i.transport.lease
	return l.await(ctx, i.CurrentTerm(), func() bool { return enough(l.acked[server]) })
}
