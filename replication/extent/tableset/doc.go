// Package tableset says how the tables of one replica lie in the database of its store: it reads and writes whole pages, the counts of
// segments, and what a group knows of volumes, under the keys of package table. A page is put together from the versions below it.
//
// It keeps no state and takes no lock: what is in memory, and not stored yet, its caller knows (package extent).
package tableset
