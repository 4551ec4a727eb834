// Package op is the encoding of what a gateway asks of a group and of what the group answers.
//
// The bytes of a mutation (header and payload) are the data of its Raft entry: they are written once, by the
// gateway's side, and never re-encoded on the way to the disk. The package also encodes results, reads and block
// status, which never enter the log. It decides nothing: whether an operation is applied or refused is
// replication/extent's business.
//
// What it keeps true: every decoder accepts hostile input, checks each length before it allocates, never panics,
// and what it accepts encodes to the same bytes again. Values carry no locks: they may be used by one goroutine
// at a time, or read by many. Layouts are in docs/format/op.md.
package op
