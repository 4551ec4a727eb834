// Package noroom tells a lack of room, which passes, from all else that a file system refuses. What follows from it is its caller's: whether
// the error of a sync counts (diskio.NoSpace), and whether something waits for room or is refused.
package noroom

import (
	"errors"
	"syscall"
)

// Is reports whether an error says that a file system, or what this user may have of it, is full, whichever call said so.
func Is(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
