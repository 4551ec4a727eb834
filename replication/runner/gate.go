package runner

// Gate calls done once, with nil when this node's disk holds the entry and everything before it, with an error when the
// disk has failed. It may call at once; done must not block. It returns false, and does not call, if the log does not hold
// the entry under that term. The gate is what lets StoreLogs return before the sync.
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
// it brings (StoreLogs of the data groups' log store).
//
// Refusals, higher terms, heartbeats and commit-only requests count nothing and pass at once. The lookup is by (index,
// term) after the library has answered, so entries that it skipped as duplicates are waited for as well, and an entry
// that was truncated meanwhile is not answered for.
type Gate func(index, term uint64, done func(error)) bool

// openGate is the gate of a log store that is durable when StoreLogs returns: the catalog's.
func openGate(_, _ uint64, done func(error)) bool {
	done(nil)
	return true
}
