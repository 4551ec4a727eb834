// Package nbd serves the NBD protocol: a Server exports what a Backend finds. Package nbdclient is the other end.
//
// It knows nothing of volumes, groups or Raft. It keeps no data: what an Export has accepted is the export's to
// keep, and a request is answered only after the export said that it is done.
//
// # What it keeps true
//
//   - Nothing is allocated for a length from the network before the length was checked. Whatever clients send, the memory of
//     requests in flight is bounded for each connection, and for one or more servers together (Budget). A client that does not
//     take its replies, or uses a volume that is stuck, leaves room for the others.
//   - A request is either answered exactly once or its connection ends, and then the export learns that something
//     was left unanswered. The stream of replies is never out of step: after a failed write nothing more is written.
//   - A flush starts after the mutations that its connection had in flight before it have returned.
//   - No goroutine outlives ServeConn or Serve.
//
// # What is supported
//
// Fixed newstyle handshake: EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT,
// SET_META_CONTEXT, EXTENDED_HEADERS. Commands: READ (with holes as chunks of their own, and DF), WRITE, DISC, FLUSH,
// TRIM, CACHE, WRITE_ZEROES (NO_HOLE, FAST_ZERO), BLOCK_STATUS (REQ_ONE, and a list of contexts with extended
// headers), RESIZE. What NO_HOLE costs is the export's to say: of a storaged volume it writes zeroes like other data, and
// FAST_ZERO refuses it. FUA is accepted everywhere and costs nothing, because every acknowledged mutation is durable.
// Requests of any alignment; payloads up to 32 MiB; ranges of other commands up to the size of the export. Metadata
// contexts are the export's: base:allocation, and storaged:dirty for what changed since a snapshot.
//
// RESIZE is the protocol's experimental extension: the offset of the request is the new size. Of the common clients
// none sends it; the Client of package nbdclient does. A volume that grows otherwise is seen by new connections, and its
// new bytes can be used at once on old ones, by a client that was told the size by other means.
//
// # Concurrency
//
// A Server may be used concurrently. Requests of one connection run concurrently; replies are sent in the
// order in which they are ready.
//
// BUG(nbd): Oldstyle and non-fixed newstyle negotiation are not spoken. A client that does not set the flag for fixed
// newstyle is served as if it had.
//
// BUG(nbd): LIST sends no descriptions, because clients misread them; INFO and GO send them when asked.
//
// BUG(nbd): The TLS mode is one for all exports (all or none need it); unix sockets never need it. There is no
// authentication beyond client certificates.
//
// BUG(nbd): The namespace storaged: is not registered with the protocol's authors.
//
// BUG(nbd): ERROR_OFFSET chunks are not sent: a request fails as a whole. ROTATIONAL is never set.
//
// BUG(nbd): A client that sends its last request and then closes only its sending direction is taken for one that is
// gone: its requests in flight are cancelled. DISC is the way to say goodbye.
package nbd
