// Package storedir is the data directory of a store: whose it is, who may use it, what lies where in it, and the file system
// through which it is opened.
//
// The ids of an identity are written once, its format is raised; both are written whole. What is made here is durable, the directories that were missing above it included. A
// lock is held by one process at a time. Functions may be called concurrently for different directories.
package storedir
