package runner

// The numbers of the methods of Raft over the peers (docs/format/peer.md). The lane in brackets is the one that they use.
const (
	methodRaftAppend          = 1 // AppendEntries (Data)
	methodRaftHeartbeats      = 2 // heartbeats of all groups between two nodes (Control)
	methodRaftVote            = 3 // RequestVote (Control)
	methodRaftPreVote         = 4 // RequestPreVote (Control)
	methodRaftTimeoutNow      = 5 // leadership transfer (Control)
	methodRaftInstallSnapshot = 6 // manifest of a snapshot (Bulk)
)
