package replication

import (
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

var errTransferAgain = errors.New("leadership is not transferred: the replica has acknowledged nothing since the last attempt failed")

type failedTransfer struct {
	term      uint64
	lastIndex uint64 // of the log when it failed
}

// allowed reports whether leadership may be transferred to the server, which has acknowledged everything up to acked.
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
		return errTransferAgain
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

// transfer asks the server to lead, and waits until it does or the library gives up, which takes an election time-out.
func (in *instance) transfer(server raft.ServerID, address raft.ServerAddress) error {
	term := in.raft.CurrentTerm()
	if err := in.transfers.begin(server, term, in.transport.lease.ackedIndex(server)); err != nil {
		return err
	}
	err := until(&in.futures, in.raft.LeadershipTransferToServer(server, address)).Error()
	in.transfers.end(server, term, in.raft.LastIndex(), err)
	return err
}
