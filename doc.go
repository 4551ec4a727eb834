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
//	host        a machine that attaches volumes; it may or may not run a node
//	version in force  what nodes may say to each other and write to their disks, a number of the cluster: builds that do not know
//	            it do not run there
//	catalog     the Raft group that holds the cluster's metadata
//	segment     an append-only file of fixed size; Raft entries and data live in segments
//	extent table  1,024 locations (segment, offset, crc32c): where each block of one extent version lies
//	epoch       a volume's snapshot counter; a write carries it
//	generation  a volume's attach counter; a write carries it, so a host that lost the volume is refused
//	session     one opened volume at one gateway; its id and sequence numbers make retries exactly-once
//	gateway     the code that turns a host's requests into requests to group leaders
//	holder      who has a volume: a host, or an NBD client at a node
//	attachment  a volume that a holder has, with its terms (exclusive, shared, readers) and a generation; the catalog keeps it
//	window      which numbers of a session a group has applied: a low-water mark, and a bit for each of the next 1,024
//	lane        a volume's way to one of its groups; a session's numbers are dense in each. In package peer: one of the connections
//	            between two nodes (control, data, bulk)
//	export      a volume as NBD clients see it: a name, a size and flags
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
//	host       also replication.Host, which runs a node's replicas; and the hosts of simnet and csitest, which are machines of a test
//	gateway    the code (volume.Gateway), which every node has; the process `storaged gateway` (hostgateway.Gateway), which has it for a
//	           host; the interface to that process (host.Gateway); and the catalog's entry of it (catalog.Gateway)
//	cluster    the nodes together; types named Cluster are what their package asks of them: api.Cluster what people ask,
//	           volume.Cluster what a gateway asks; catalog.Cluster is its settings
//	transport  how messages travel: of bytes between nodes (package peer), of hashicorp/raft's requests over it (package runner)
//	device     a block device of a host (nbd/attach); inside of package volume what all handles of a volume share; in package
//	           transfer the bytes of a volume that are copied
//	disk       a store's disk of a node; in package hostgateway a volume that the host has, with its device
//	group      a Raft group; extent.Group and segment.GroupLog are what one replica of it keeps in its store
package storage
