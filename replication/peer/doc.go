// Package peer carries requests between the nodes of a cluster: one framed, multiplexed protocol for Raft, data and
// repair (docs/design.md section 5, "Peers"; the bytes are in docs/format/peer.md).
//
// A Transport dials a peer when the first request for it is made, and then holds one connection for each lane:
// Control for heartbeats and votes, Data for entries and reads, Bulk for repair. No lane waits for another. The
// connections of a peer form a set that lives and dies together: when one fails, all are closed and every
// outstanding request of the set ends with KindUnavailable. Requests travel on the connections their sender dialled,
// answers come back on the same connection.
//
// What it does not do: it knows nothing of Raft, of operations or of extents, and it does not retry a request. It
// checksums frames and headers, but not payloads: blocks and log records carry their own crc32c from end to end.
//
// What it keeps true:
//   - Requests handed to Go on one lane leave in the order of the calls, and an Ordered method's handler sees the
//     requests of one (peer, group) one after another in that order. Requests that were refused leave gaps.
//   - Every request ends exactly once: answered, refused, or failed because its connection set died.
//   - The bytes of a request or reply are not referenced any more once it ended.
//   - Nothing grows with load: requests and bytes in flight a lane and peer, bytes queued a group, replies not yet
//     written, connections and attempts to connect are bounded by Config. A peer that is frozen or that does not
//     read its answers costs no more than that and is dropped after KeepaliveTimeout.
//
// All exported methods may be used concurrently, but Handle, which comes before Run, and Response.Release.
// Everything works on virtual time inside a testing/synctest bubble when the connections do.
package peer
