package runner

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/raft"
)

// transfers remembers which transfers of leadership have failed, so that none is asked for that can end all of a
// group's work.
//
// To bring its successor up to date the library leaves a request with the goroutine that replicates to it, in a channel
// that holds one (raft.go, leadershipTransfer: triggerDeferErrorCh), and puts it there without looking whether the
// transfer has been given up. Where that goroutine hangs, for a follower that cannot be reached, the first transfer times
// out and leaves its request behind; the second finds the channel full. If leadership is lost meanwhile, the goroutine
// ends, the second transfer waits forever, and its mark, "transfer in progress", is never taken back: the next time that
// this replica is elected it leads and refuses every request, until the process ends. The simulation found it.
//
// So after a failed transfer to a replica there is no second one in that term before the replica has acknowledged
// an entry that was appended after the failure: then its goroutine has gone round, and has taken the request out. And there
// is one at a time: one that waits for the library's main loop until the one before has failed would be a second, too.
type transfers struct {
	mu     sync.Mutex
	busy   bool                             // one is under way; guarded by mu
	failed map[raft.ServerID]failedTransfer // guarded by mu; of the newest term that something failed in
}

// ErrTransferAgain refuses a transfer that could hang.
var ErrTransferAgain = errors.New("leadership is not transferred: the replica has acknowledged nothing since the last attempt failed")

type failedTransfer struct {
	term      uint64
	lastIndex uint64 // of the log when it failed
}

func (t *transfers) allowed(server raft.ServerID, term, acked uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.allowedLocked(server, term, acked)
}

func (t *transfers) allowedLocked(server raft.ServerID, term, acked uint64) bool {
	f, ok := t.failed[server]
	return !ok || f.term != term || acked > f.lastIndex
}

// begin notes that a transfer is under way, or says why there must be none. The caller calls end after one that began.
func (t *transfers) begin(server raft.ServerID, term, acked uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.busy:
		return raft.ErrLeadershipTransferInProgress
	case !t.allowedLocked(server, term, acked):
		return ErrTransferAgain
	}
	t.busy = true
	return nil
}

// end notes how a transfer ended. lastIndex is that of the log now.
func (t *transfers) end(server raft.ServerID, term, lastIndex uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy = false
	if err == nil {
		return
	}
	for s, f := range t.failed {
		if f.term != term {
			delete(t.failed, s)
		}
	}
	if t.failed == nil {
		t.failed = map[raft.ServerID]failedTransfer{}
	}
	t.failed[server] = failedTransfer{term, lastIndex}
}

// Transfer asks a server to lead, and waits until it does or the library gives up, which takes an election time-out.
func (i *Instance) Transfer(op string, server raft.ServerID, address raft.ServerAddress) error {
	term := i.CurrentTerm()
	if err := i.transfers.begin(server, term, i.Acked(server)); err != nil {
		return i.translate(op, err)
	}
	// No context: the library gives up after an election time-out, and until then takes no other transfer.
	_, err := Do(context.Background(), i, op, func(r *raft.Raft) raft.Future {
		return r.LeadershipTransferToServer(server, address)
	})
	i.transfers.end(server, term, i.LastIndex(), err)
	return err
}

// HandOver gives leadership to the voter that is furthest, if there is another, before this replica stops.
func (i *Instance) HandOver(ctx context.Context) error {
	if !i.Leads() {
		return nil
	}
	var best raft.Server
	var bestIndex uint64
	for _, s := range i.Configuration().Servers {
		acked := i.Acked(s.ID)
		if s.Suffrage == raft.Voter && s.ID != i.self && acked >= bestIndex && i.transfers.allowed(s.ID, i.CurrentTerm(), acked) {
			best, bestIndex = s, acked
		}
	}
	if best.ID == "" {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- i.Transfer("hand over to "+string(best.Address), best.ID, best.Address) }() // ends within the election time-out
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return i.translate("hand over", context.Cause(ctx))
	}
}
