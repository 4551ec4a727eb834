package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/internal/blockdev"
)

// This file makes loop devices. All of it but what only reads sysfs is called by helper processes.

const loopTries = 64 // for a free device: others look for one too

// loopAttach lays a loop device with direct I/O over a file and returns its path.
func loopAttach(file string, readOnly bool) (string, error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_DIRECT_IO)
	if readOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	f, err := os.OpenFile(file, mode, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = control.Close() }()
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: BlockSize, Info: unix.LoopInfo64{Flags: flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		path := "/dev/loop" + strconv.Itoa(n)
		err = configureLoop(path, &config)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		return path, err
	}
	return "", errors.New("no loop device is free")
}

func configureLoop(path string, config *unix.LoopConfig) error {
	if err := ensureNode(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return os.NewSyscallError("LOOP_CONFIGURE", unix.IoctlLoopConfigure(int(f.Fd()), config))
}

// ensureNode makes the device's node in /dev where nothing else does it.
func ensureNode(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	text, err := os.ReadFile("/sys/block/" + filepath.Base(path) + "/dev")
	if err != nil {
		return err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return err
	}
	return unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(major, minor)))
}

// loopResize makes a loop device as large as its file. To look at the file first is what tells the kernel of its size.
func loopResize(device, file string) error {
	_, err := os.Stat(file)
	shown := err == nil
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		f, err = os.OpenFile(device, os.O_RDONLY, 0)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if !shown { // its file system shows in no mount namespace any more: the device itself can be asked to look at the file
		if _, err := unix.IoctlLoopGetStatus64(int(f.Fd())); err != nil {
			return os.NewSyscallError("LOOP_GET_STATUS64", err)
		}
	}
	return os.NewSyscallError("LOOP_SET_CAPACITY", unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0))
}

// loopDetach takes a loop device off its file. While it is in use that is errBusy, or, with force, left to the kernel, which
// does it when the last user has gone. A device that lies over another file, and has not the sequence number either (0: not
// known), is somebody else's by now, and this one is done.
func loopDetach(device, file string, sequence uint64, force bool) error {
	flags := os.O_RDONLY
	if !force {
		flags |= os.O_EXCL // refused while the device is mounted, or part of another
	}
	f, err := os.OpenFile(device, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return errBusy
	}
	if err != nil {
		return err
	}
	// From here on, being open, it stays what it is.
	if ours := loopFile(device) == file || sequence != 0 && blockdev.Sequence(device) == sequence; !ours {
		return f.Close()
	}
	if !force {
		_ = f.Sync() // what was written to the device itself and not synced; an error is the writer's to hear
	}
	if err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); errors.Is(err, unix.ENXIO) {
		err = nil // it is free already
	}
	if err := errors.Join(os.NewSyscallError("LOOP_CLR_FD", err), f.Close()); err != nil || force {
		return err
	}
	return awaitLoopFree(device)
}

// blockSync writes out what the kernel holds for a block device: errBusy while it is mounted, or part of another.
func blockSync(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY|os.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return errBusy
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// deviceSync writes out what the kernel holds for a block device and for the file systems on it that are mounted here.
func deviceSync(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	places, err := mountsOf(device)
	errs := []error{err}
	for _, at := range places {
		errs = append(errs, fileSystemSync(at))
	}
	return errors.Join(append(errs, f.Sync())...)
}

// deviceUnmount unmounts what is mounted here of a block device, the last mount first: errBusy if somebody uses it, and it is not lazy.
func deviceUnmount(device string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	places, err := mountsOf(device)
	if err != nil {
		return err
	}
	for _, at := range slices.Backward(places) {
		switch err := unix.Unmount(at, flags); {
		case errors.Is(err, unix.EBUSY):
			return errBusy
		case err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT): // unmounted meanwhile
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return nil
}

// mountsOf returns where file systems on a block device, or on a partition of it, are mounted in this mount namespace, in the order of
// mounting.
func mountsOf(device string) (places []string, err error) {
	numbers := map[string]bool{}
	base := "/sys/block/" + filepath.Base(device)
	partitions, _ := filepath.Glob(base + "/" + filepath.Base(device) + "p*/dev")
	for _, file := range append(partitions, base+"/dev") {
		if number, err := os.ReadFile(file); err == nil { // a partition that has gone
			numbers[strings.TrimSpace(string(number))] = true
		}
	}
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !numbers[fmt.Sprintf("%d:%d", i.Major, i.Minor)], false
	})
	for _, m := range mounts {
		places = append(places, m.Mountpoint)
	}
	return places, err
}

// endRetries has an XFS on a device give up at the first metadata block that cannot be written, as other file systems do: by default it
// tries again for ever, and whoever remounts it read-only, as the end of a host does, waits for as long. It is called before the device is
// taken away from its users.
func endRetries(device string) {
	files, _ := filepath.Glob("/sys/fs/xfs/" + filepath.Base(device) + "*/error/metadata/*/max_retries")
	for _, file := range files {
		_ = os.WriteFile(file, []byte("0"), 0) // /sys may be read-only, in a container
	}
}

func fileSystemSync(at string) error {
	f, err := os.Open(at)
	if errors.Is(err, os.ErrNotExist) {
		return nil // unmounted meanwhile
	}
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))), f.Close())
}

// awaitLoopFree waits until the device has been taken off its file, which happens when its last user closes it. If
// somebody has it open still, it stays as it was.
func awaitLoopFree(device string) error {
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
		if loopFile(device) == "" {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = loopKeep(device) // without it the device goes when its user does, as it was asked to
	return errBusy
}

// loopKeep has a loop device stay when its last user closes it.
func loopKeep(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return os.NewSyscallError("LOOP_GET_STATUS64", err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	return os.NewSyscallError("LOOP_SET_STATUS64", unix.IoctlLoopSetStatus64(int(f.Fd()), info))
}

// loopGoesWithUser reports whether a loop device is taken off its file when its last user closes it.
func loopGoesWithUser(device string) bool {
	return blockdev.Attribute(device, "loop/autoclear") == "1"
}

// loopFile returns the file that a loop device lies over; "" if none.
func loopFile(device string) string {
	return blockdev.Attribute(device, "loop/backing_file")
}

// loopOver returns the loop device that lies over a file; "" if none does.
func loopOver(file string) string {
	entries, _ := filepath.Glob("/sys/block/loop*")
	for _, e := range entries {
		if loopFile(e) == file {
			return "/dev/" + filepath.Base(e)
		}
	}
	return ""
}

// deviceBytes returns the size of a block device, as the kernel has it; 0 if there is none.
func deviceBytes(device string) int64 {
	sectors, _ := strconv.ParseInt(blockdev.Attribute(device, "size"), 10, 64) // 0 on an error
	return sectors * 512
}
