// Package room says how much room there is on the disk of a store, what takes it, and what is refused for want of it.
//
// # What it does
//
// It puts together what the file system says, what the segment log and the tables have, and what of that lives (Space). From
// that follow what clients can still write, and when writes are refused before they are proposed (Full, Exhausted). It says what
// copies and pulls may take (MayTake), when free segments are given back for tables (MakeRoom), and how eager the workers are (Level).
//
// # What it does not do
//
// It makes no room itself and writes nothing: it sees the log, the tables' database and the counts of live blocks through small
// interfaces (Log, Tables, Live). Whoever asks it decides what to do.
//
// # What it keeps true
//
//   - A store is full before its file system is: what it needs itself (NeedBytes), and half of the reserve for what overwrites, are left (I6).
//   - The parts of Space add up to its capacity.
//   - No mutex is held while the disk is asked: it may wait for room.
//
// All methods may be called concurrently.
package room
