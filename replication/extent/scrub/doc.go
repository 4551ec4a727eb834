// Package scrub finds what a disk no longer gives back as it was written, before a reader does, and has it written anew from another
// replica while there is one (ADR 45).
//
// A pass reads the sealed segments in the order of their numbers, every record with its checksum, and every block to which a table
// refers with the table's; then it goes over all pages of the tables, and looks there for the blocks of those segments whose
// records did not lead to all of them. A pass begins each interval, and is spread over it (pace). Where it is survives a restart.
//
// A damaged record that no table refers to is garbage: it is counted, and its segment recycled in time. A block that is damaged is
// mended, at leaders and followers alike; one that no replica has is lost, and listed until it is overwritten or a replica is back that has
// it. The worker decides what is looked at and when; how, is the business of Disk.
//
// Worker's methods may be called concurrently, Run once.
package scrub
