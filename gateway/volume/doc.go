// Package volume is the gateway: it turns reads and writes of volumes into requests to the groups that hold them.
//
// It splits requests by extent and by entry size, computes the crc32c of every block once, and numbers every mutation
// within its session. It repeats unanswered requests until they are known to be applied or refused. It knows nothing
// of Raft, of NBD or of where leaders are: the Cluster it is given routes requests, and gateway/export offers it to
// the NBD server.
//
// What it keeps true:
//
//   - A mutation that was acknowledged is durable on a majority. A mutation is applied at most once, whatever was
//     repeated: numbers are dense per (session, group), and number s is not sent before s-1,024 was answered.
//   - A number that may have been sent is brought to a known outcome before anybody uses it again; a caller's
//     context ends only the caller's waiting.
//   - A mutation whose caller left before it was answered (its context ended, its connection closed) holds back every
//     request that starts afterwards. It does so until its outcome is known, or until its session was closed in every
//     group of the volume. So no old copy lands after a later acknowledged write.
//   - No read returns bytes that fail their crc32c.
//   - Requests, bytes, goroutines and retries in flight are bounded by Config, per volume and per gateway.
//
// Requests that are outstanding together may be applied in any order; a request that starts after another was
// answered comes after it. Everything exported may be used by any number of goroutines at a time.
package volume
