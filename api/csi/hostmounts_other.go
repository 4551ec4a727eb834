//go:build !linux

package csi

import (
	"errors"

	storage "github.com/storaged/storaged"
)

// HostMounts are the Mounts of this host; there are none on this system.
type HostMounts struct{ Mounts }

// NewHostMounts returns Mounts that cannot be used: every call of them panics. See Supported.
func NewHostMounts(string) *HostMounts { return &HostMounts{} }

// Supported returns why the node service does not run on this system.
func Supported() error {
	return storage.E("run", storage.KindUnsupported, "the CSI node service", errors.New("it mounts by Linux' system calls; run it on Linux"))
}
