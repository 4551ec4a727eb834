package hostfs

import (
	"context"

	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/blockdev"
)

// Disk is a block device as the gateway has named it. Its path may be another's by now: what works on it opens it once, sees
// that it is the one that is meant, and keeps it open meanwhile (package blockdev).
type Disk struct {
	Path     string
	Identity blockdev.Identity
}

// DiskOf returns the device of an attachment.
func DiskOf(a host.Attachment) Disk { return Disk{Path: a.Device, Identity: a.Identity} }

// Allocation reports whether a device holds anything; an error means that it is not known.
type Allocation func(ctx context.Context) (bool, error)

// AllocationOf returns that of an attachment, asked of the cluster.
func AllocationOf(devices Devices, a host.Attachment) Allocation {
	return func(ctx context.Context) (bool, error) { return devices.Allocated(ctx, a.Volume, a.ID) }
}

// Mounts is what is asked of the host's kernel and of its tools for file systems. HostMounts is the real
// one; package csitest has one in memory. Every method may be repeated: what is done already is no error. Errors are
// storage.Error.
//
// What waits for a device or a tool may take longer than anybody waits. With Mounts that are InSlots a call still ends with its
// context. The error is then ErrPending, the work goes on, and the next call on the device or the path waits for it.
type Mounts interface {
	// List returns what is mounted as this process sees it, in the order in which it was mounted.
	List() ([]Mount, error)
	// Real returns path as List shows it: without symbolic links above its last element.
	Real(path string) string
	// Device returns the block device that the disk is. KindNotFound when there is nothing; KindInvalid when it is none;
	// KindConflict when another device has the path by now. The methods below answer the same.
	Device(ctx context.Context, d Disk) (BlockDevice, error)
	// Settle waits for the work on the device that calls have left running.
	Settle(ctx context.Context, d Disk) error
	// Format makes a file system of fsType on the device if the device is blank, and returns the type that is there then.
	// A device is blank if nothing of it is allocated, or if an attempt to format it was cut short. An empty fsType
	// accepts any, and means ext4 when the device is blank. KindConflict: the device holds something else, or, with
	// readOnly, nothing. KindIO: it cannot be read. An error of allocated is returned: what is not known to be blank is not
	// formatted.
	Format(ctx context.Context, d Disk, fsType string, readOnly bool, allocated Allocation) (string, error)
	// Mount mounts the file system of the device at a directory, which is made if need be, after repairing what its checker
	// repairs by itself. KindConflict: it is mounted there on other terms.
	Mount(ctx context.Context, d Disk, target, fsType string, options []string) error
	// Bind makes a directory appear at target too, which is made if need be, with the directories above.
	Bind(ctx context.Context, source, target string, readOnly bool) error
	// BindDevice makes the device appear at target, an empty file that is made if need be, with the directories above.
	BindDevice(ctx context.Context, d Disk, target string, readOnly bool) error
	// Unmount takes away everything that is mounted at target.
	Unmount(ctx context.Context, target string) error
	// Remove removes the empty file or directory that Bind made.
	Remove(ctx context.Context, target string) error
	// Grow makes the file system that is mounted at path as large as its device, if it is not.
	Grow(ctx context.Context, d Disk, path string) error
	// Usage returns how full the file system at path is.
	Usage(ctx context.Context, path string) (Usage, error)
}

// Mount is one line of the kernel's table of mounts.
type Mount struct {
	Path string
	// Device is the number (st_dev) of the file system that is mounted.
	Device uint64
	// Node is the number (st_rdev) of the block device whose node is mounted at Path; 0: it is not a device node.
	Node   uint64
	FSType string
	// Whole is whether the file system's root is mounted, and not a directory of it.
	Whole bool
	// ReadOnly is whether this mount refuses writes, FrozenFS whether the file system itself does: after an error, if it was
	// not mounted so.
	ReadOnly bool
	FrozenFS bool
}

// Shows reports whether the mount shows the device: its file system or its node.
func (m Mount) Shows(d BlockDevice) bool {
	return d.Number != 0 && (m.Device == d.Number || m.Node == d.Number)
}

// BlockDevice is a block device of the host.
type BlockDevice struct {
	Number    uint64 // st_rdev; never 0
	SizeBytes int64
	ReadOnly  bool
}

// Usage is how full a file system is.
type Usage struct {
	TotalBytes, UsedBytes, AvailableBytes    int64
	TotalInodes, UsedInodes, AvailableInodes int64
}

// MountAt returns the topmost mount at path, which must be as Mounts.Real returns it.
func MountAt(mounts []Mount, path string) (Mount, bool) {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].Path == path {
			return mounts[i], true
		}
	}
	return Mount{}, false
}
