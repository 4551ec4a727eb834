// Package replication runs the groups of one node: replicas of extents, kept equal by hashicorp/raft.
//
// It binds three things together. The segment log (replication/segment) is Raft's log store; the extents
// (replication/extent) are its state machine; and the runner (replication/runner) runs the library over them, holds
// acknowledgements until disks hold what they acknowledge, and keeps the promises by which a leader may read its own table.
// What makes the sum safe is here:
//
//   - Mutations of a block range are serialised on the leader (see ranges.go), so that partial blocks merge and a
//     later write is never overtaken by an earlier one.
//   - Whatever is accepted is bounded in bytes, per group and per store (see admission.go).
//   - No store is sent more than it has room for, by all who lead groups on it together (see space.go, diskroom.go).
//
// # What waits for what
//
// Goroutines of this package and of the library wait for each other, and for disks that may be slow. No cycle may come of
// it. An arrow is "waits for"; what a row does not name it must not wait for:
//
//	requests of clients and peers  -> room (admission, ranges, Store.AwaitRoom: each with a limit of time), Raft's main
//	                                  loop, the state machine, the log's disk
//	a checkpoint (runSnapshots)    -> the state machine (Freeze), then Raft's main loop (its configuration), then the
//	                                  log's disk and the tables' (Persist)
//	Raft's main loop               -> the state machine (its queue holds 128 batches, and a Restore is waited for), and the
//	                                  log's disk (a full tail; a batch that must be durable; a term or vote)
//	the state machine              -> the tables' disk (a page that is not in memory; Install's batch)
//	the log's committer            -> the preparer of segments, the disk; what it calls (gates, answers) never blocks
//	the preparer of segments       -> the disk, and descriptors
//	checkpoints of a disk, one after another, and their retries -> one checkpoint
//	room in the tables' memory     -> checkpoints
//
// Read upwards it has no way back: the state machine waits for no checkpoint, though it makes the pages that only
// checkpoints make room for. So their number is bounded before the entries are in the log, by those who may be refused: a
// leader's proposals, and what a follower takes from its leader (runner.Transport.awaitRoom), where nobody has Raft's main loop
// in hand. A goroutine of the library that meets a disk it cannot go on without is parked until its instance stops
// (runner.Instance.Park); everyone who stops an instance cancels it first and waits with a limit.
//
// It knows nothing of NBD, of volumes' names, or of the catalog. Replicas may be used by any number of goroutines.
package replication
