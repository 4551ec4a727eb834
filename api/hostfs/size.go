package hostfs

import (
	"cmp"
	"fmt"

	storage "github.com/storaged/storaged"
)

// The file systems that volumes are formatted with.
const (
	Ext4 = "ext4"
	XFS  = "xfs"
)

// MinBytes is the smallest device that the tools of a file system format: mkfs.xfs refuses less than 300 MiB, and an
// ext4 below 2 MiB has no room for a journal, below 8 MiB for little else. Without a type it is ext4.
func MinBytes(fsType string) int64 {
	if fsType == XFS {
		return 300 << 20
	}
	return 8 << 20
}

// CheckSize returns an error of KindInvalid for a volume that a file system of the type does not fit; empty means ext4.
func CheckSize(fsType string, sizeBytes int64) error {
	if least := MinBytes(fsType); sizeBytes < least {
		return storage.E("check", storage.KindInvalid, "size of the volume", fmt.Errorf("it has %d bytes, and %s needs %d (%d MiB); ask for more",
			sizeBytes, cmp.Or(fsType, Ext4), least, least>>20))
	}
	return nil
}
