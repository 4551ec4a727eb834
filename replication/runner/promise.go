package runner

import (
	"sync"
	"time"
)

// promise is what one replica has bound itself to by its answers. It is consulted by the transport for every
// Success and every vote that would leave the node; hashicorp/raft's own refusal to vote is not a promise, because a
// follower can answer a heartbeat while it becomes a candidate, and a late TimeoutNow elects a leader under a live
// lease.
//
// The rules, for a HeartbeatTimeout h:
//
//  1. Before a Success of term t leaves, (t, now) is noted. For h from then, no vote leaves: neither a granted answer
//     nor an own RequestVote.
//  2. After a vote of term v has left, no Success of a term below v leaves.
//  3. A process start counts as a promise: what the process before it promised is not known.
//  4. A vote flagged as leadership transfer passes rule 1: the leader that asked for the transfer has given up its
//     lease for the rest of its term. An own one passes only if its term is one above that of the TimeoutNow frame.
//
// The leader counts an answer from the moment it *sent* the request, and for 0.8 h only. So a majority of Success
// answers means that no other leader can be elected meanwhile, as long as no clock runs a quarter faster than another.
type promise struct {
	span time.Duration // h

	mu           sync.Mutex
	until        time.Time // no vote leaves before; guarded by mu
	votedTerm    uint64    // highest term of a vote that left; guarded by mu
	transferTerm uint64    // term an own transfer vote may have: TimeoutNow's term + 1; guarded by mu
}

// newPromise starts with the promise of a process start.
func newPromise(span time.Duration, now time.Time) *promise {
	return &promise{span: span, until: now.Add(span)}
}

// success notes a Success of the given term and reports whether it may leave.
func (p *promise) success(term uint64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term < p.votedTerm { // rule 2
		return false
	}
	if until := now.Add(p.span); until.After(p.until) { // rule 1
		p.until = until
	}
	return true
}

// vote notes a vote of the given term (a granted answer, or an own request when own is set) and reports whether it
// may leave.
func (p *promise) vote(term uint64, own, transfer bool, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if own && transfer && term != p.transferTerm { // rule 4; those who are asked would not look at their promises
		return false
	}
	passes := transfer
	if !passes && now.Before(p.until) { // rules 1 and 3
		return false
	}
	p.votedTerm = max(p.votedTerm, term)
	return true
}

// end returns when the promise ends that stands now.
func (p *promise) end() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until
}

// timeoutNow notes that the leader of the given term has asked this replica to take over, and reports whether the
// request is of the replica's own term; an older one is refused.
func (p *promise) timeoutNow(term, ownTerm uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term < ownTerm || term < p.votedTerm {
		return false
	}
	p.transferTerm = term + 1
	return true
}
