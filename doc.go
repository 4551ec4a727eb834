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
//	label       a key and a value of a volume, which people and tools find it by
//	group       one Raft group that holds many extents of many volumes on N replicas
//	replica     one member of a group: a store plus an incarnation, never used twice
//	store       one data directory (disk) of a node; the unit of failure
//	incarnation the number of a replica on its store, new each time that one is made there: with the store's id it is a member's
//	            name, never used twice
//	node        one storaged process that serves one or more stores
//	cluster     the nodes together
//	garbage     what segments take that is neither a live block nor what must stand around it; compaction wins it back
//	reserve     what a store keeps free for deletes, for tables and for overwrites
//	fill        which part is taken of what a store may hold: at 1 new data is refused
//	host        a machine that attaches volumes; it may or may not run a node
//	device      a block device of a host: a volume's, where nothing else is said
//	version in force  what nodes may say to each other and write to their disks, a number of the cluster: builds that do not know
//	            it do not run there
//	catalog     the Raft group that holds the cluster's metadata
//	segment     an append-only file of fixed size; Raft entries and data live in segments
//	extent table  1,024 locations (segment, offset, crc32c): where each block of one extent version lies
//	epoch       a volume's snapshot counter; a write carries it
//	generation  a volume's attach counter; a write carries it, so a host that lost the volume is refused
//	session     one opened volume at one gateway; its id and sequence numbers make retries exactly-once
//	gateway     the code that turns a host's requests into requests to group leaders
//	trunk       what all handles of a volume share at one gateway (package volume)
//	holder      who has a volume: a host, or an NBD client at a node
//	attachment  a volume that a holder has, with its terms (exclusive, shared, readers) and a generation; the catalog keeps it
//	holding     a volume that a host has, with its device, as the host's gateway keeps it (package hostgateway)
//	window      which numbers of a session a group has applied: a low-water mark, and a bit for each of the next 1,024
//	lane        a volume's way to one of its groups; a session's numbers are dense in each. In package peer: one of the connections
//	            between two nodes (control, data, bulk)
//	export      a volume as NBD clients see it: a name, a size and flags
//	content     the bytes of a volume, as they are copied in and out (package transfer)
//	lease       the time during which a leader may answer reads without asking anyone
//	promise     what a lease stands on: a follower that has answered a leader votes for nobody else for a while
//	gate        what holds back an acknowledgement until the log is durable up to it
//	checkpoint  a group's tables and small state, written to the database as of one index; recovery begins there
//	manifest    a checkpoint that another node pulls, with the segments that it refers to pinned
//	staging     what has arrived of a manifest and is not installed yet
//	router      who leads a group, as a gateway knows it (package route)
//	dispatcher  what hands a node's frames of Raft to its groups, and sends the heartbeats of all of them together (package runner)
//	index, term the position of an entry in a group's log, and the reign it was proposed in
//
// # Words with more than one meaning
//
// Where a word means something else than above, the package says so, and only there:
//
//	gateway    also the process `storaged gateway` (hostgateway.Gateway), which has the gateway's code for a host
//	transport  how messages travel: of bytes between nodes (package peer), of hashicorp/raft's requests over it (package runner)
//	device     in package workload also a connection over which a test's client uses a volume
//	disk       in package hostfs the block device of a volume, as the host's gateway has named it
//	group      a Raft group; extent.Group and segment.GroupLog are what one replica of it keeps in its store
//
// Types named Gateway or Cluster are one thing, as each package sees it: catalog.Gateway, volume.Gateway; api.Cluster, volume.Cluster.
package storage
