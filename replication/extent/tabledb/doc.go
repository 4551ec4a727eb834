// Package tabledb is the database of one store's tables: Pebble, on a disk that may fail or be full. Keys and values are its
// caller's (package table).
//
// Pebble ends the process when its log or manifest cannot be written, and repeats without a pause what found no room. Here
// the first fails the disk, once and for good (Config.OnFailure), and what finds no room waits for it, below Pebble: it
// goes on where it was when there is some, or when the database is closed. An error of a sync is never repeated.
//
// What it keeps true: after Commit has returned nil its batch is durable; a snapshot does not change; no call waits for a
// database that has failed.
//
// All methods may be called concurrently, but for those of a Batch.
package tabledb
