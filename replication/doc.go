// Package replication runs the groups of one node: replicas of extents, kept equal by hashicorp/raft.
//
// It binds four things together. The segment log (replication/segment) is Raft's log store; the extents
// (replication/extent) are its state machine; the peers (replication/peer) carry its messages; and this package
// holds the rules that the library leaves open and that make the sum safe:
//
//   - An acknowledgement is held, not the log (see gate.go): nothing that counts an entry towards its commit leaves
//     a node, or reaches the library on the leader, before that node's disk holds the entry.
//   - A promise is kept by the transport (see promise.go): what a follower has told a leader binds its votes for one
//     HeartbeatTimeout, so that the leader may answer reads from its own table (see lease.go).
//   - Mutations of a block range are serialised on the leader (see ranges.go), so that partial blocks merge and a
//     later write is never overtaken by an earlier one.
//   - Whatever is accepted is bounded in bytes, per group and per store (see admission.go).
//
// It knows nothing of NBD, of volumes' names, or of the catalog. A Host may be used by any number of goroutines.
package replication
