// Package table is what a store knows of extents and volumes, as values. Tables say where each block lies (Page, Version).
// From the small state a group decides what it applies (State, Volume). The formats of both are here, on the disk and between
// replicas.
//
// It is the pure half of package extent: no database, no lock, no clock, no I/O, and of the segment log only the names of
// places. So what reads or rewrites tables beside the store (its check, purges, compaction) speaks the same words.
//
// A page has a version for each epoch at which it was written. A version stores what was written then, and refers to the ones
// below for the rest (Page); references to segments are counted apart from blocks (Count).
//
// What it keeps true: the same operations on the same State give the same results on every replica (I2, I3, I4). A value
// that fails its checksum, or lies under a key that it was not written for, is not decoded.
//
// Nothing here may be used concurrently without its owner's lock. The formats are in docs/format/extent.md.
package table
