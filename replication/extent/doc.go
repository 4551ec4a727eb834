// Package extent keeps the extents of group replicas on one disk (docs/design.md, sections 4 to 6). A store is one data
// directory. Its segment log holds the data, and its database the tables that say where each block lies.
//
// # What it does
//
// Apply turns log entries into table entries that point at the payload which the log has already put on the disk. It decides
// from the group's small state alone (sessions, generations, epochs) whether an entry takes effect. Freeze and Persist write
// a checkpoint; Read and Status look blocks up; manifests and stagings bring up a replica that lags or is new.
//
// # What others do
//
//   - table: tables, the small state and their formats, as values
//   - live: which segments the tables refer to
//   - reclaim: the workers that give back space
//   - room: how much room there is, what takes it, and what is refused for want of it
//   - compact: moves live blocks out of segments that are full of dead ones, by way of Repoint
//   - tabledb: Pebble on a disk that may fail or be full
//   - storedir: the data directory
//   - check: verifies a stopped store
//
// # What it does not do
//
// It knows nothing of the Raft library, of peers or of leases: whoever calls Read must know that it may. It does not choose
// when checkpoints are taken (it asks for them by OnCheckpointDue). It repairs no block by itself
// (docs/adr/0033-workers-beside-the-store.md).
//
// # What it keeps true
//
//   - Applying the same entries gives the same results and the same contents on every replica (I2, I3, I4).
//   - A checkpoint never records an applied index beyond what the segment log holds durably (I1, I7).
//   - No read returns bytes that fail the crc32c kept with the mapping (I5).
//   - A segment is recycled only when no table refers to it, neither in memory nor in a durable checkpoint, staging
//     or open manifest (I1, I6).
//   - A version of a page is put together from what was written at its epoch and from the versions below, whose blocks do not
//     change under it; of one that cannot be, nothing is read (I4, I5).
//   - Nothing is written in a form that an earlier build does not know before the data directory says so (RaiseFormat).
//   - A replica that receives a manifest is what it was until Install, and all of the manifest after it (I7, I8).
//   - What is kept of a pull that broke is durable, counted and named in one batch, and is gone, durably, before its segments
//     are used again (I1, I8).
//   - Memory is bounded: pages that could be read again by CacheBytes, pages that were changed since the last checkpoint by
//     what AwaitRoom lets in. Apply never waits for a checkpoint (I9).
//
// # Concurrency
//
// All methods may be called concurrently but for those of one Group that change it: Apply, Freeze and Install are
// called by one goroutine at a time (the state machine's). A Frozen is used by one goroutine at a time.
//
// The formats are in docs/format/extent.md.
package extent
