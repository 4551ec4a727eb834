package runner

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// lease is a leader's book of who answered Success to what, and when that was *sent*. All of it belongs to one term;
// an answer of another term is not entered.
type lease struct {
	span time.Duration // 0.8 x HeartbeatTimeout: see promise

	mu          sync.Mutex
	term        uint64                      // guarded by mu, like all below
	sent        map[raft.ServerID]time.Time // newest send time whose request was answered with Success
	acked       map[raft.ServerID]uint64    // highest index acknowledged durable, for promotion and lag
	ready       bool                        // a Barrier of this term has completed
	transferred bool                        // a TimeoutNow of this term was sent: no lease until elected again
	changed     chan struct{}               // closed and replaced at every entry; nil while nobody waits
}

func newLease(heartbeatTimeout time.Duration) *lease {
	return &lease{span: heartbeatTimeout * 8 / 10, sent: map[raft.ServerID]time.Time{},
		acked: map[raft.ServerID]uint64{}}
}

// begin starts the book of a term. What was entered for that term already (an answer can overtake the notice of the
// election) stays.
func (l *lease) begin(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.toTermLocked(term)
}

func (l *lease) toTermLocked(term uint64) {
	if term <= l.term {
		return
	}
	l.term, l.ready, l.transferred = term, false, false
	l.wakeLocked()
	clear(l.sent)
	clear(l.acked)
}

// success enters an answer: server answered a request of the given term that was sent at the given time.
// lastIndex is the last entry of the request, 0 for none.
func (l *lease) success(server raft.ServerID, term uint64, sent time.Time, lastIndex uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.toTermLocked(term)
	if term < l.term {
		return
	}
	if sent.After(l.sent[server]) {
		l.sent[server] = sent
	}
	l.acked[server] = max(l.acked[server], lastIndex)
	l.wakeLocked()
}

// setReady notes that a Barrier of the term has completed: the table holds everything earlier terms committed.
func (l *lease) setReady(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if term == l.term {
		l.ready = true
		l.wakeLocked()
	}
}

func (l *lease) wakeLocked() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// giveUp ends the lease for the rest of the term: leadership is about to be transferred.
func (l *lease) giveUp(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.toTermLocked(term)
	if term == l.term {
		l.transferred = true
	}
}

// isReady reports whether this replica leads the term with its Barrier done.
func (l *lease) isReady(term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term == term && l.ready
}

// valid reports whether, at now, the leader of the term may answer reads from its own table.
func (l *lease) valid(term uint64, self raft.ServerID, c raft.Configuration, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term == term && l.ready && !l.transferred && l.majorityLocked(self, c, now.Add(-l.span))
}

// majorityLocked reports whether a majority of the voters has answered a request sent after the given time. The
// leader counts itself only if it is a voter.
func (l *lease) majorityLocked(self raft.ServerID, c raft.Configuration, after time.Time) bool {
	voters, n := 0, 0
	for _, s := range c.Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == self || l.sent[s.ID].After(after) {
			n++
		}
	}
	return voters > 0 && n > voters/2
}

// confirm waits until a majority has answered a request that was sent after the given time: a quorum read. It
// returns false when the term is over or ctx is done. It needs no lease, only rule 2 of promise: whoever has voted in a
// later term gives no Success of this one. (raft.VerifyLeader would count answers to older requests.)
func (l *lease) confirm(ctx context.Context, term uint64, self raft.ServerID, config func() raft.Configuration,
	after time.Time) bool {
	if !l.isReady(term) { // a term that was ready stays so
		return false
	}
	return l.await(ctx, term, func() bool { return l.majorityLocked(self, config(), after) })
}

// await waits until what answers of the term have brought makes ok true; false when the term is over or ctx is done. ok is
// called with mu held.
func (l *lease) await(ctx context.Context, term uint64, ok func() bool) bool {
	for {
		l.mu.Lock()
		if l.term > term || l.term == term && ok() {
			defer l.mu.Unlock()
			return l.term == term
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// ackedIndex returns the highest index that a server has acknowledged durable in this term.
func (l *lease) ackedIndex(server raft.ServerID) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked[server]
}
