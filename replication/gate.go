package replication

import (
	"github.com/storaged/storaged/replication/segment"
)

// gate answers when this node's disk holds an entry. It is what lets StoreLogs return before the sync.
//
// # Why this is safe
//
// hashicorp/raft counts an entry as stored by a server in two places: on a follower's Success, and on the leader when
// StoreLogs returns. It commits what a majority of the voters has stored. Both counts here come before the disk
// has the entry, so both must be kept from mattering until it has:
//
//   - A follower's Success for a request with entries leaves its node only when the follower's log is durable up to
//     the request's last entry (Transport.serveAppend).
//   - On the leader that answer is handed to the library only when the leader's own log is durable up to the same entry
//     (Transport.answered).
//
// With two voters or more, commit(i) needs the answer of at least one follower for an entry >= i of the leader's
// term. When the library sees the one that completes a majority of n voters, at least ceil((n-1)/2) followers and
// the leader are durable up to i: the first gate saw to the followers, the second to the leader, because the log is
// durable as a prefix. That is a majority. With one voter there is no answer to hold; StoreLogs itself waits then, and
// also for every batch with a configuration entry, because the library counts such a batch under the configuration
// it brings (logStore.StoreLogs).
//
// Refusals, higher terms, heartbeats and commit-only requests count nothing and pass at once. The lookup is by (index,
// term) after the library has answered, so entries that it skipped as duplicates are waited for as well, and an entry
// that was truncated meanwhile is not answered for.
type gate interface {
	// EndOf returns the position up to which the log must be durable to hold the entry; false if the log does not
	// hold it under that term.
	EndOf(index, term uint64) (segment.Position, bool)
	// Notify calls fn once, with nil when the log is durable up to p, with an error when the disk failed. It may
	// call at once; fn must not block.
	Notify(p segment.Position, fn func(error))
}

// logGate is the gate of a group in a segment log.
type logGate struct {
	group *segment.GroupLog
	log   *segment.Log
}

func (g logGate) EndOf(index, term uint64) (segment.Position, bool) {
	return g.group.EndOf(index, term)
}
func (g logGate) Notify(p segment.Position, fn func(error)) { g.log.Notify(p, fn) }

// openGate is the gate of a log store that is durable when StoreLogs returns: the catalog's.
type openGate struct{}

func (openGate) EndOf(uint64, uint64) (segment.Position, bool) { return 0, true }
func (openGate) Notify(_ segment.Position, fn func(error))     { fn(nil) }
