// Package segment is the segment log of one disk (docs/design.md, section 4): the one append stream in which the log
// records of all group replicas of the disk lie, and with them their data, which is written here once and nowhere
// else.
//
// # What it does
//
// A log is a directory of segment files of a fixed size. Records are appended to the open segment; one committer
// goroutine drains all records that wait into one write and one sync (group commit across groups). Append never
// waits for the disk: it returns the position after which its records end, and Wait or Notify tell when that
// position is durable. Segments are filled with zeroes ahead of time, and used again under a new number when nothing
// in them is needed any more. Opening a log is recovering it: there is no other way.
//
// # What it does not do
//
// It knows nothing of extents, of what the data of an entry means, nor of the Raft library. It does not decide
// which segments hold live data; Recycle trusts its caller. It does not repair: a damaged log opens, and says by
// Damaged which replicas have lost something that they may once have acknowledged.
//
// # What it keeps true
//
//   - Durable() <= everything written <= End(). A position never goes back and is never used twice, not even after a
//     crash: what was discarded as a torn tail cannot come back as valid.
//   - After a restart every record below a position once reported durable is there, or its group is Damaged.
//   - A record is valid only in the segment number and at the position it was written for.
//   - After the first error of a write or a sync nothing is written any more, and every waiter learns of it.
//   - Memory: data not yet durable is bounded by Config.MaxTailBytes, cached data by Config.CacheBytes, headers by
//     the number of entries that groups have not compacted.
//
// # Concurrency
//
// All methods of Log and GroupLog may be called concurrently. Appends of one group must be ordered by their caller,
// because they must be contiguous. Callbacks run in the committer and must not block, nor call Close.
//
// The file formats are in docs/format/segment.md.
package segment
