// Package powercut shows that what storaged has acknowledged survives a loss of power on the real way to a disk: the kernel's
// page cache, Linux AIO, direct I/O and a file system (ext4, xfs). The crash tests of replication/segment and
// replication/extent cut the power of a file system in memory and see none of these.
//
// Nodes run on file systems of loop devices whose disks (Disk) write down, in one order for all of them (Trace), what is
// written and when a flush is over. From that a disk is made as a loss of power at any point would have left it (Medium,
// Cut): what a flush has covered is there, and of all other writes none, or some, or some sectors of some. The file system is
// mounted, `storaged check` reads the store, the nodes are started, and every sector of the volume must hold the last write
// to it that had been acknowledged at that point, or a later one.
//
// The test needs root, FUSE and loop devices (build tags e2e and devices; `make powercut`). See README.md.
package powercut
