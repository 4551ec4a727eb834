// Package diskio does the disk's work so that neither a thread nor a processor of Go waits for it: syncs and zeroes by
// Linux AIO (Syncer, Zeroes), reads by the page cache and an io_uring (Reader), writes around the page cache, or that
// leave nothing in it (Writer). docs/adr/0030-around-gos-scheduler.md says why. Where the kernel refuses, the ordinary calls are made.
//
// It knows files and bytes, not what is in them. Errors are those of the system calls; NoSpace tells a lack of room, which
// passes, from what a disk refuses.
//
// A Reader may be used concurrently; Syncer, Zeroes and Writer belong to one goroutine each.
package diskio
