package csi

import (
	"fmt"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/hostfs"
)

// mode is an access mode.
type mode = spec.VolumeCapability_AccessMode_Mode

// use is what a volume capability asks for.
type use struct {
	block    bool
	fsType   string // empty: any, or with block
	flags    []string
	mode     mode
	shared   bool // several hosts at a time
	readers  bool // none of which writes
	readOnly bool
	oneUser  bool // one target path at a time
}

// access is the term on which a volume is attached for the use.
func (u use) access() storage.Access {
	switch {
	case u.readers:
		return storage.AccessReaders
	case u.shared:
		return storage.AccessShared
	}
	return storage.AccessExclusive
}

// maxMountOptionsBytes is one page, which is what mount(2) takes.
const maxMountOptionsBytes = 4095

// parseUse reads a capability; what it returns as an error is what is wrong or not offered.
func parseUse(c *spec.VolumeCapability) (use, error) {
	var u use
	if c.GetAccessMode() == nil {
		return u, fmt.Errorf("it has no access mode")
	}
	u.mode = c.GetAccessMode().GetMode()
	switch {
	case c.GetBlock() != nil:
		u.block = true
	case c.GetMount() != nil:
		m := c.GetMount()
		u.fsType, u.flags = m.GetFsType(), m.GetMountFlags()
		if u.fsType != "" && u.fsType != hostfs.Ext4 && u.fsType != hostfs.XFS {
			return u, fmt.Errorf("file system %q is not offered; use %s or %s", u.fsType, hostfs.Ext4, hostfs.XFS)
		}
		if m.GetVolumeMountGroup() != "" {
			return u, fmt.Errorf("a mount group is not offered")
		}
		if n := len(strings.Join(u.flags, ",")); n > maxMountOptionsBytes {
			return u, fmt.Errorf("its mount flags have %d bytes, the kernel takes %d", n, maxMountOptionsBytes)
		}
	default:
		return u, fmt.Errorf("it asks neither for a block device nor for a mount")
	}
	switch u.mode {
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER:
		u.oneUser = true
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		u.readOnly = true
	case spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		u.shared, u.readers, u.readOnly = true, true, true
	case spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER:
		if !u.block {
			return u, fmt.Errorf("%s and xfs cannot be mounted for writing on several hosts at once; use volumeMode Block, or a "+
				"single-node access mode", hostfs.Ext4)
		}
		u.shared = true
	default:
		return u, fmt.Errorf("access mode %s is not offered", u.mode)
	}
	if slices.Contains(u.flags, "ro") {
		u.readOnly = true
	}
	return u, nil
}

// parseUses reads a list of capabilities: at least one, none that is not offered.
func parseUses(list []*spec.VolumeCapability) ([]use, error) {
	if len(list) == 0 {
		return nil, invalid("volume_capabilities is empty")
	}
	uses := make([]use, 0, len(list))
	for i, c := range list {
		u, err := parseUse(c)
		if err != nil {
			return nil, invalid("volume capability %d: %v", i+1, err)
		}
		uses = append(uses, u)
	}
	return uses, nil
}
