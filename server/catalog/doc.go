// Package catalog is the state machine of the cluster's metadata: nodes, groups, volumes, attachments and
// sessions (design section 7).
//
// It is pure: a State and a command give a changed State and a Result. It reads no clock, performs no
// I/O, draws no random numbers and starts no goroutine; times and request ids come in the commands. Package control
// replicates the commands with Raft and decides when to issue them. This package decides only what they mean.
//
// # What it keeps true
//
//   - Equal commands in equal order give equal states, and equal snapshots, byte for byte.
//   - Ids of nodes, groups, volumes, attachments and sessions ascend from 1 and are never used twice, also after deletion.
//     A group's incarnations ascend in the same way, over all stores.
//   - A refused command changes nothing.
//   - Every command may be applied twice in a row. A proposer that lost the answer proposes the command again, and gets
//     the answer it missed, or an error that says what it did the first time. State is never changed twice.
//   - The number and the size of everything is bounded (limits.go).
//   - A volume that is deleted has no live session and no attachment, sizes never shrink, generations and epochs never
//     fall.
//   - An exclusive attachment is its volume's only one. Every attachment has its volume's generation. Whatever ends a
//     holder's right against its will raises the generation, and nobody gets a session before every group of the volume is
//     known to refuse the older ones.
//   - Replicas of one group lie on different nodes, and an incarnation is named by one replica only.
//
// # Concurrency
//
// A State is not safe for concurrent use; package control guards it with a lock. Objects inside a State are never
// changed in place, only replaced, so that Clone is cheap; what the views return are copies that the caller owns.
//
// # Versions
//
// A command carries the version of the rules it was written for. A State refuses versions above its own
// (Cluster.Version), also when the binary knows them: all nodes must decide alike. Raising the version is a
// command of its own, proposed only when every node runs a binary that knows it.
package catalog
