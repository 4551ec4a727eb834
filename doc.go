// Package storage is the vocabulary of storaged, a distributed block store.
//
// It holds the typed identifiers, the sizes, the limits and the error kinds that every other package
// speaks in. It performs no I/O, starts no goroutine and imports nothing of this module. Everything in it may
// be used concurrently: identifiers are values, errors are immutable.
//
// # Glossary
//
//	block       4 KiB, the unit of mapping and of checksum
//	extent      4 MiB of one volume (1,024 blocks), the unit of placement, versioning, repair and scrub
//	volume      a block device of a fixed, growable size, striped over groups extent by extent
//	group       one Raft group that holds many extents of many volumes on N replicas
//	replica     one member of a group: a store plus an incarnation, never used twice
//	store       one data directory (disk) of a node; the unit of failure
//	node        one storaged process that serves one or more stores
//	host        a machine that attaches volumes; it may or may not run a node
//	catalog     the Raft group that holds the cluster's metadata
//	segment     an append-only file of fixed size; Raft entries and data live in segments
//	extent table  1,024 locations (segment, offset, crc32c): where each block of one extent version lies
//	epoch       a volume's snapshot counter; a write carries it
//	generation  a volume's attach counter; a write carries it, so a host that lost the volume is refused
//	session     one opened volume at one gateway; its id and sequence numbers make retries exactly-once
//	gateway     the code that turns a host's requests into requests to group leaders
//	export      a volume as NBD clients see it: a name, a size and flags
//	lease       the time during which a leader may answer reads without asking anyone
//	index, term the position of an entry in a group's log, and the reign it was proposed in
package storage
