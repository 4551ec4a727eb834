package hostfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// mountFlags are the options that mount(2) takes as flags; a false value clears the flag. All others are the file
// system's own.
var mountFlags = map[string]struct {
	flag uintptr
	set  bool
}{
	"defaults": {}, "rw": {unix.MS_RDONLY, false}, "ro": {unix.MS_RDONLY, true},
	"suid": {unix.MS_NOSUID, false}, "nosuid": {unix.MS_NOSUID, true}, "dev": {unix.MS_NODEV, false}, "nodev": {unix.MS_NODEV, true},
	"exec": {unix.MS_NOEXEC, false}, "noexec": {unix.MS_NOEXEC, true}, "async": {unix.MS_SYNCHRONOUS, false},
	"sync": {unix.MS_SYNCHRONOUS, true}, "dirsync": {unix.MS_DIRSYNC, true}, "atime": {unix.MS_NOATIME, false},
	"noatime": {unix.MS_NOATIME, true}, "diratime": {unix.MS_NODIRATIME, false}, "nodiratime": {unix.MS_NODIRATIME, true},
	"relatime": {unix.MS_RELATIME, true}, "norelatime": {unix.MS_RELATIME, false}, "strictatime": {unix.MS_STRICTATIME, true},
	"lazytime": {unix.MS_LAZYTIME, true}, "nolazytime": {unix.MS_LAZYTIME, false}, "silent": {unix.MS_SILENT, true},
	"loud": {unix.MS_SILENT, false},
}

// splitOptions sorts mount options into flags and what the file system reads. Options that only programs in user space
// look at are left out.
func splitOptions(options []string) (flags uintptr, data string) {
	var rest []string
	for _, list := range options {
		for o := range strings.SplitSeq(list, ",") {
			f, known := mountFlags[o]
			switch {
			case known && f.set:
				flags |= f.flag
			case known:
				flags &^= f.flag
			case o == "" || o == "_netdev" || o == "nofail" || o == "auto" || o == "noauto" || strings.HasPrefix(o, "x-"):
			default:
				rest = append(rest, o)
			}
		}
	}
	return flags, strings.Join(rest, ",")
}

// mountDevice mounts by the system call, so that an image needs no mount program.
func mountDevice(source, target, fsType string, options []string) error {
	flags, data := splitOptions(options)
	if err := unix.Mount(source, target, fsType, flags, data); err != nil {
		return fmt.Errorf("mount at %s as %s (%s): %w", target, fsType, strings.Join(options, ","), err)
	}
	return nil
}

// bind makes source appear at target.
func bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return errors.Join(fmt.Errorf("look at %s: %w", target, err), unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
	}
	// A remount sets all flags again: what the source was mounted with must be said again.
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY)
	for _, f := range []struct{ st, ms uintptr }{{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV},
		{unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_NOATIME, unix.MS_NOATIME}, {unix.ST_NODIRATIME, unix.MS_NODIRATIME},
		{unix.ST_RELATIME, unix.MS_RELATIME}} {
		if uintptr(st.Flags)&f.st != 0 {
			flags |= f.ms
		}
	}
	if err := unix.Mount("", target, "", flags, ""); err != nil {
		// Writable is not what was asked for: better nothing than that.
		return errors.Join(fmt.Errorf("make %s read-only: %w", target, err), unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// unmountAll takes away what is mounted at target, layer by layer.
func unmountAll(target string) error {
	const mostLayers = 64
	for range mostLayers {
		switch err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist): // no mount there
			return nil
		case err != nil:
			return err
		}
	}
	return fmt.Errorf("more than %d mounts lie there", mostLayers)
}
