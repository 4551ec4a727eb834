// Package live knows which segments the tables of a disk refer to: for each table set how many entries refer to each
// segment, and how many blocks live in it (Set), and of all sets together which segments are in use (Index). It reads no table and
// frees no segment: who changes tables says what changed, and who recycles segments asks.
//
// What it keeps true (I1): a segment is in use while any state of a set refers to it: the durable one, the one that is being
// written, or the present one. It is also in use while blocks may lie in it that nobody has counted yet.
//
// All methods may be called concurrently. Locks are leaves: nothing else is locked, or waited for, under them.
package live
