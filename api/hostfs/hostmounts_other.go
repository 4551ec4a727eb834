//go:build !linux

package hostfs

import (
	"errors"

	storage "github.com/storaged/storaged"
)

// New returns Mounts that cannot be used: every call of them panics. See Supported.
func New(string) *Slotted { return InSlots(nil) }

// Supported returns why the node service does not run on this system.
func Supported() error {
	return storage.E("run", storage.KindUnsupported, "the file systems of a host", errors.New("it mounts by Linux' system calls; run it on Linux"))
}
