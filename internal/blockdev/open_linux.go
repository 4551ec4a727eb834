package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
)

// OpenOwned opens the block device at path for reading, and returns it if it is the one that is wanted. KindConflict if it
// is another one by now, or, with exclusive, if somebody has claimed it: it is mounted, or part of another device.
// KindNotFound if there is none.
//
// While it is open it stays what it is, and so does its path: whoever hands that path to a tool, or mounts it, keeps the
// file open meanwhile. With exclusive nobody else can claim it, a tool neither: mkfs, fsck and mount(2) claim a device by
// themselves, and are given one that was opened without.
//
// A zero identity, of a gateway that does not say it, equals everything. It may wait for the gateway that serves the
// device, as a read of the device would.
func OpenOwned(path string, want Identity, exclusive bool) (*os.File, error) {
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	if exclusive {
		flags |= unix.O_EXCL
	}
	fail := func(kind storage.Kind, err error) (*os.File, error) {
		return nil, storage.E("open", kind, "device "+path, err)
	}
	fd, err := unix.Open(path, flags, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO):
		return fail(storage.KindNotFound, err)
	case errors.Is(err, unix.EBUSY):
		return fail(storage.KindConflict, errors.New("it is in use: mounted, or part of another device"))
	case err != nil:
		return fail(storage.KindIO, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if want.IsZero() {
		return f, nil
	}
	found, err := Of(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := want.differs(found); err != nil {
		_ = f.Close()
		return fail(storage.KindConflict, fmt.Errorf("%w: it is not the volume's device any more, and is left alone; detach the volume and attach it again", err))
	}
	return f, nil
}

// Of returns what an open block device is. Of a loop device it asks the file system of the file that the device lies over.
func Of(f *os.File) (Identity, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return Identity{}, err
	}
	var id Identity
	var of error
	if err := raw.Control(func(fd uintptr) { id, of = ofDescriptor(int(fd)) }); err != nil {
		return Identity{}, err
	}
	if of != nil {
		return id, storage.E("look at", storage.KindIO, "device "+f.Name(), of)
	}
	return id, nil
}

// blkGetDiskSeq is BLKGETDISKSEQ, which x/sys/unix does not have.
const blkGetDiskSeq = 0x80081280

func ofDescriptor(fd int) (id Identity, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return id, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return id, errors.New("it is no block device")
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), blkGetDiskSeq, uintptr(unsafe.Pointer(&id.Sequence))); errno != 0 {
		id.Sequence = 0 // before Linux 5.15
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	switch {
	case err == nil:
		id.FileDevice, id.FileInode = info.Device, info.Inode
	case errors.Is(err, unix.ENXIO): // a loop device over nothing
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL): // no loop device
		id.Backend = NBDBackend(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	default:
		return id, os.NewSyscallError("LOOP_GET_STATUS64", err)
	}
	return id, nil
}

// NBDBackend returns the backend identifier of a kernel NBD device that is connected, from its directory in sysfs; empty if
// it is not connected, or has none. It never waits.
func NBDBackend(dir string) string {
	if attribute(dir, "pid") == "" { // disconnected
		return ""
	}
	return attribute(dir, "backend")
}

// Attribute returns a file of the directory in sysfs of the device at path, without its end of line; empty if it cannot be read.
// It never waits.
func Attribute(path, file string) string {
	return attribute(filepath.Join("/sys/block", filepath.Base(path)), file)
}

func attribute(dir, file string) string {
	text, _ := os.ReadFile(filepath.Join(dir, file)) // empty on an error
	return strings.TrimSuffix(string(text), "\n")
}

// Sequence returns the kernel's number of what the device at path is, from sysfs; 0 if it is not known. It never waits.
func Sequence(path string) uint64 {
	n, _ := strconv.ParseUint(Attribute(path, "diskseq"), 10, 64) // 0 on an error
	return n
}
