// Package compact makes room on a disk whose segments are full of blocks that were overwritten: it copies what still lives in the
// emptiest segments to the end of the log, makes the tables refer to the copies, and has the tables checkpointed, after which the
// segments are recycled as all dead ones are (package reclaim). So a disk never fills up with garbage (I6).
//
// It chooses segments (Choose), keeps a pace that clients do not feel (pace), and goes through the steps (Worker). How blocks are
// found, copied and re-pointed is the disk's business, behind the interface Disk. It keeps no state that a start would miss.
//
// What it relies on, and what a Disk must keep true (I1):
//
//   - A copy is durable before a table refers to it.
//   - A block is re-pointed only if it still lies where it was copied from, in all versions of its table together.
//   - The segment of a copy is held until the copy is counted.
//   - A victim stays counted until a checkpoint without it is durable.
//
// Why there is no deadlock: a round writes less than it frees, because a victim is fuller than MaxUse never; it begins only while
// there is room for what it writes; and clients stop before that is gone.
package compact
