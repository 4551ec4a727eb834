//go:build race

package peer

// raceEnabled: the race detector learns from system calls of package syscall that a reader of a socket comes after
// its writer, but not from writev. Where writev is used, an empty write before it says so.
const raceEnabled = true
