// Package reclaim gives back what a store needs no more, without a client that asks for it: the tables of deleted volumes,
// segments to which no table refers, and, by asking for checkpoints, what waits for one (I6).
//
// Its workers see the store through small interfaces: the live segments (Segments), tables that are changed beside
// checkpoints, if they still are what the worker takes them for (Tables), and replicas (Replica). It keeps no state of its own
// that a start would miss: what is to be purged is durable, and everything else is looked at again.
//
// It moves no block: a segment is given back when all in it is overwritten, discarded, deleted, or moved (package compact).
package reclaim
