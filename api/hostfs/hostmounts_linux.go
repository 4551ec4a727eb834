package hostfs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	mount "k8s.io/mount-utils"
	"k8s.io/utils/exec"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
)

// hostMounts are the Mounts of this host: system calls for mounting, the system's tools for making, checking and growing
// file systems. It may be used concurrently. Contexts end its tools and nothing else.
type hostMounts struct {
	root string
	dirs []string // where tools are, below the root
	// mount is mount(2).
	mount func(source, target, fsType string, options []string) error
	// table reads the kernel's table of mounts.
	table func() ([]mount.MountInfo, error)
}

var _ Mounts = (*hostMounts)(nil)

// New returns the Mounts of the host. root is where this process sees the host's root directory, whose tools are
// used then; empty: those beside the process. Paths of devices and mounts must be the same on both sides.
func New(root string) *Slotted { return InSlots(newHostMounts(root)) }

func newHostMounts(root string) *hostMounts {
	return &hostMounts{root: strings.TrimSuffix(filepath.Clean("/"+root), "/"), dirs: toolDirs, mount: mountDevice,
		table: func() ([]mount.MountInfo, error) { return mount.ParseMountInfo("/proc/self/mountinfo") }}
}

// tools returns the system's tools, for a call of that context.
func (h *hostMounts) tools(ctx context.Context) tools {
	return tools{ctx: ctx, root: h.root, dirs: h.dirs}
}

// List implements Mounts. Mounts below the host's root directory are listed with the path that they have on the host. A mount
// that this process also sees at its own place is listed once. Mounts that only the host has are listed too: they use a
// device just as those of a pod do.
func (h *hostMounts) List() ([]Mount, error) {
	infos, err := h.table()
	if err != nil {
		return nil, storage.E("read", storage.KindInternal, "the table of mounts", err)
	}
	return listed(infos, h.root), nil
}

// listed returns the mounts of a table: those of the host's own first, so that what this process sees itself is on top.
func listed(infos []mount.MountInfo, root string) []Mount {
	type place struct {
		path   string
		device uint64
	}
	var own, hosts []Mount
	seen := map[place]bool{}
	for _, i := range infos {
		m, path := mountOf(i), unescape(i.MountPoint)
		if under, is := strings.CutPrefix(path, root); is && root != "" && (under == "" || under[0] == '/') {
			m.Path = cmp.Or(under, "/")
			hosts = append(hosts, m)
			continue
		}
		seen[place{m.Path, m.Device}] = true
		own = append(own, m)
	}
	hosts = slices.DeleteFunc(hosts, func(m Mount) bool { return seen[place{m.Path, m.Device}] })
	return append(hosts, own...)
}

// mountOf reads one line of the table.
func mountOf(i mount.MountInfo) Mount {
	m := Mount{Path: unescape(i.MountPoint), Device: unix.Mkdev(uint32(i.Major), uint32(i.Minor)), FSType: i.FsType, Whole: i.Root == "/",
		ReadOnly: slices.Contains(i.MountOptions, "ro"), FrozenFS: slices.ContainsFunc(i.SuperOptions, func(o string) bool {
			return o == "ro" || o == "emergency_ro" || o == "shutdown"
		})}
	if (i.FsType == "devtmpfs" || i.FsType == "tmpfs") && i.Root != "/" { // perhaps a device node
		var st unix.Stat_t
		if unix.Stat(m.Path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			m.Node, m.Whole = st.Rdev, true
		}
	}
	return m
}

// unescape undoes what the kernel does to spaces, tabs, newlines and backslashes in its table.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// Real implements Mounts.
func (h *hostMounts) Real(path string) string {
	path = filepath.Clean(path)
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return path
	}
	return filepath.Join(dir, filepath.Base(path))
}

// Device implements Mounts.
func (h *hostMounts) Device(_ context.Context, d Disk) (BlockDevice, error) {
	const op = "look at"
	subject := "device " + d.Path
	f, err := blockdev.OpenOwned(d.Path, d.Identity, false)
	if err != nil {
		return BlockDevice{}, err
	}
	defer f.Close()
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return BlockDevice{}, storage.E(op, storage.KindIO, subject, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return BlockDevice{}, storage.E(op, storage.KindInvalid, subject, errors.New("it is no block device"))
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return BlockDevice{}, storage.E(op, storage.KindIO, subject, err)
	}
	readOnly, err := unix.IoctlGetUint32(fd, unix.BLKROGET)
	if err != nil {
		return BlockDevice{}, storage.E(op, storage.KindIO, subject, err)
	}
	return BlockDevice{Number: st.Rdev, SizeBytes: size, ReadOnly: readOnly != 0}, nil
}

// Options of the tools: a volume reads as zeroes before it is written, there is nothing to discard.
var formatOptions = map[string][]string{Ext4: {"-q", "-E", "nodiscard"}, XFS: {"-q", "-K"}}

// Format implements Mounts.
func (h *hostMounts) Format(ctx context.Context, d Disk, fsType string, readOnly bool, allocated Allocation) (string, error) {
	const op = "format"
	device, subject := d.Path, "device "+d.Path
	held, err := blockdev.OpenOwned(d.Path, d.Identity, false)
	if err != nil {
		return "", err
	}
	defer held.Close()
	unfinished, err := inspect(device)
	if err != nil {
		return "", err
	}
	found, err := mount.NewSafeFormatAndMount(nil, h.tools(ctx)).GetDiskFormat(device) // it knows blkid
	switch {
	case err != nil:
		return "", storage.E(op, storage.KindIO, subject, err)
	case unfinished && !readOnly: // it is made anew, whatever blkid takes it for
	case found == "" && readOnly:
		return "", storage.E(op, storage.KindConflict, subject, errors.New("it has no file system yet, and is to be mounted read-only; mount it for writing first"))
	case found == "":
		if err := checkBlank(ctx, held, allocated); err != nil {
			return "", err
		}
	case fsType != "" && found != fsType || found != Ext4 && found != XFS:
		return "", storage.E(op, storage.KindConflict, subject, fmt.Errorf("it holds %q, and %q is asked for", found, fsType))
	case readOnly:
		return found, nil
	default:
		return found, eraseMark(device) // of a mkfs that was finished, and not looked at any more
	}
	fsType = cmp.Or(fsType, Ext4)
	return fsType, underMark(device, func() error {
		if unfinished { // or what blkid sees of it would be taken for a file system when this one is cut short, too
			if err := wipe(device, wipeBytes); err != nil {
				return err
			}
		}
		args := append(slices.Clone(formatOptions[fsType]), map[string][]string{Ext4: {"-F", "-m0", device}, XFS: {"-f", device}}[fsType]...)
		if out, err := h.tools(ctx).Command("mkfs."+fsType, args...).CombinedOutput(); err != nil {
			return storage.E(op, storage.KindInternal, subject, fmt.Errorf("mkfs.%s: %w: %s", fsType, err, bytes.TrimSpace(out)))
		}
		return nil
	})
}

// askTime is how long the cluster may take to say what is allocated of a volume.
const askTime = time.Minute

// checkBlank returns an error unless nothing is allocated of the open device: the cluster knows it exactly, of the whole
// volume. What this host has written and not yet sent is sent first.
func checkBlank(ctx context.Context, device *os.File, allocated Allocation) error {
	const op = "format"
	subject := "device " + device.Name()
	if err := device.Sync(); err != nil {
		return storage.E(op, storage.KindIO, subject, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime) // the caller, who would end it, may have left
	defer cancel()
	found, err := allocated(ctx)
	switch {
	case err != nil:
		return storage.E(op, storage.KindOf(err), subject, fmt.Errorf("whether it is blank is not known, and it is not formatted: %w", err))
	case found:
		return storage.E(op, storage.KindConflict, subject, errors.New("it holds data, but no file system that is known here, and is not formatted "+
			"over; if the data is not needed, attach the volume with `storagectl attach`, discard all of it with `blkdiscard`, and detach it"))
	}
	return nil
}

const (
	// headBytes is how much is looked at for what an interrupted mkfs left.
	headBytes = 64 << 10
	// wipeBytes is how much of the beginning of such a device is zeroed: what blkid knows of file systems lies there.
	wipeBytes = 1<<20 + 64<<10
)

// inspect reads the beginning of the device, past the page cache, and reports whether a mkfs of ours was begun there and not
// finished. It must come before blkid is believed that nothing is there: blkid does not tell a blank device from one that
// cannot be read.
//
// A device on which a mkfs was interrupted is formatted again. Otherwise the volume could never be used, because only a
// person could say that it holds nothing. An unfinished mkfs.xfs says so in its superblock, which would pass for a file
// system and never mount. mkfs.ext4 writes its superblock last and leaves the first 4 KiB zeroed until then, as mkfs.xfs does
// for a while, and wipe does. All other cases are recognised by writeMark.
func inspect(device string) (unfinished bool, err error) {
	const op = "read"
	subject := "device " + device
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) { // a file system that does not know O_DIRECT: a file, in tests
		f, err = os.Open(device)
	}
	if err != nil {
		return false, storage.E(op, storage.KindIO, subject, err)
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, headBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		return false, storage.E(op, storage.KindInternal, subject, err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, storage.E(op, storage.KindIO, subject, err)
	}
	switch {
	case xfsInProgress(buf[:n]):
		return true, nil
	case !allZero(buf[:min(n, zeroHeadBytes)]):
		return false, nil
	}
	return hasMark(device)
}

// zeroHeadBytes is what mkfs.ext4 leaves zeroes at the beginning of a device until all else is written.
const zeroHeadBytes = 4 << 10

// The mark says that mkfs was begun on a device that was blank. It lies where mkfs.ext4 and mkfs.xfs put nothing, but on the
// smallest of volumes: before the end, which they wipe, and after everything that they write. A block of a finished file
// system that holds it still is free: whoever had used it would have written to it. The text is older than the mark of xfs.
const (
	markText  = "storaged: mkfs.ext4 has begun here, and was not finished\n"
	markEnd   = 256 << 10 // its distance from the end, in bytes
	markLeast = 1 << 20   // smaller devices get none
)

// markAt returns where on the open device the mark lies; ok is false for devices that get none.
func markAt(f *os.File) (at int64, ok bool, err error) {
	size, err := f.Seek(0, io.SeekEnd)
	return size - markEnd - storage.BlockSize, size >= markLeast, err
}

func hasMark(device string) (bool, error) {
	f, err := os.Open(device)
	if err == nil {
		defer f.Close()
		var at int64
		var ok bool
		if at, ok, err = markAt(f); err == nil && ok {
			found := make([]byte, len(markText))
			_, err = f.ReadAt(found, at)
			return err == nil && string(found) == markText, readFailed(device, err)
		}
	}
	return false, readFailed(device, err)
}

func readFailed(device string, err error) error {
	if err == nil {
		return nil
	}
	return storage.E("read", storage.KindIO, "device "+device, err)
}

// underMark makes a file system on a blank device. While it is not finished the device says so.
func underMark(device string, mkfs func() error) error {
	if err := writeMark(device); err != nil {
		return err
	}
	if err := mkfs(); err != nil {
		return err
	}
	return eraseMark(device)
}

// writeMark must be durable before mkfs writes anything.
func writeMark(device string) error { return setMark(device, []byte(markText)) }

// eraseMark takes the mark away, if it is there.
func eraseMark(device string) error {
	if there, err := hasMark(device); err != nil || !there {
		return err
	}
	return setMark(device, make([]byte, len(markText)))
}

func setMark(device string, text []byte) error {
	return overwrite("mark", device, func(f *os.File) error {
		at, ok, err := markAt(f)
		if err == nil && ok {
			_, err = f.WriteAt(text, at)
		}
		return err
	})
}

// overwrite lets write change the device for itself alone, and makes the change durable: tools for file systems claim the device
// too, and one may be at work that a process before this one has begun. KindConflict then.
func overwrite(op, device string, write func(*os.File) error) error {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return storage.E(op, storage.KindConflict, "device "+device, fmt.Errorf("%w: something works on it or has mounted it, a mkfs that was "+
			"begun before for example; ask again when it has ended", err))
	}
	if err == nil {
		err = errors.Join(write(f), f.Sync(), f.Close())
	}
	if err != nil {
		return storage.E(op, storage.KindIO, "device "+device, err)
	}
	return nil
}

// xfsInProgress reports whether the superblock of an XFS says that mkfs has not finished: sb_inprogress, at byte 126.
func xfsInProgress(b []byte) bool {
	return len(b) > 126 && bytes.HasPrefix(b, []byte("XFSB")) && b[126] == 1
}

func allZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// wipe zeroes the first n bytes of the device, the first 64 KiB of them last: they say that the rest is to be wiped.
func wipe(device string, n int) error {
	head := min(n, headBytes)
	return overwrite("wipe", device, func(f *os.File) error {
		_, err := f.WriteAt(make([]byte, n-head), int64(head))
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			_, err = f.WriteAt(make([]byte, head), 0)
		}
		return err
	})
}

// Settle implements Mounts: nothing goes on here after its call.
func (h *hostMounts) Settle(context.Context, Disk) error { return nil }

// Mount implements Mounts.
func (h *hostMounts) Mount(ctx context.Context, d Disk, target, fsType string, options []string) error {
	const op = "mount"
	device, readOnly := d.Path, slices.Contains(options, "ro")
	held, err := blockdev.OpenOwned(d.Path, d.Identity, false)
	if err != nil {
		return err
	}
	defer held.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(held.Fd()), &st); err != nil {
		return storage.E(op, storage.KindIO, "device "+device, err)
	}
	// A caller before this one may have left when it was being mounted.
	if done, err := h.shown(BlockDevice{Number: st.Rdev}, target, readOnly); err != nil || done {
		return err
	}
	err = os.MkdirAll(target, 0o750)
	if err == nil && !readOnly {
		err = h.check(ctx, device, fsType)
	}
	if err == nil {
		err = h.mount(device, target, fsType, withDefaults(fsType, options))
	}
	if err != nil {
		return storage.E(op, storage.KindInternal, "device "+device, err)
	}
	return nil
}

// shown reports whether the device, or its file system, is on top at target already. KindConflict: it is, on other terms.
func (h *hostMounts) shown(d BlockDevice, target string, readOnly bool) (bool, error) {
	list, err := h.List()
	if err != nil {
		return false, err
	}
	m, there := MountAt(list, h.Real(target))
	switch {
	case !there || !m.Shows(d):
		return false, nil
	case m.Node == 0 && m.ReadOnly != readOnly: // what binds a node read-only does so to the node, not to the device
		return false, storage.E("mount", storage.KindConflict, target, fmt.Errorf("it is mounted there already, read-only: %t; unmount it first",
			m.ReadOnly))
	}
	return true, nil
}

// withDefaults adds the options that every file system of a type is mounted with. xfs refuses to mount two with the same UUID
// at the same time, and a copy of a volume has the original's UUID.
func withDefaults(fsType string, options []string) []string {
	if fsType != XFS {
		return options
	}
	return append(slices.Clone(options), "nouuid")
}

// check lets the file system's checker repair what it repairs without being asked, which for ext4 includes the journal. Only
// errors that it has found and left stop the mount; without a checker the kernel is the judge. It is called by its own name:
// the fsck that calls it would die with the driver, and leave it behind.
func (h *hostMounts) check(ctx context.Context, device, fsType string) error {
	const errorsLeft = 4
	out, err := h.tools(ctx).Command("fsck."+fsType, "-a", device).CombinedOutput()
	var exited exec.ExitError
	if errors.As(err, &exited) && exited.ExitStatus()&errorsLeft != 0 {
		return fmt.Errorf("fsck found errors that a person must decide on; detach the volume, attach it with `storagectl attach` and "+
			"run fsck there: %s", bytes.TrimSpace(out))
	}
	return nil
}

// Bind implements Mounts.
func (h *hostMounts) Bind(_ context.Context, source, target string, readOnly bool) error {
	const op = "bind"
	err := makeTarget(source, target)
	if err != nil {
		return storage.E(op, storage.KindInternal, target, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return storage.E(op, storage.KindInternal, target, err)
	}
	shows := BlockDevice{Number: st.Dev}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		shows.Number = st.Rdev
	}
	if done, err := h.shown(shows, target, readOnly); err != nil || done {
		return err
	}
	if err := bind(source, target, readOnly); err != nil {
		return storage.E(op, storage.KindInternal, target, err)
	}
	return nil
}

// BindDevice implements Mounts.
func (h *hostMounts) BindDevice(ctx context.Context, d Disk, target string, readOnly bool) error {
	held, err := blockdev.OpenOwned(d.Path, d.Identity, false)
	if err != nil {
		return err
	}
	defer held.Close()
	return h.Bind(ctx, d.Path, target, readOnly)
}

// makeTarget makes a directory, or an empty file, for what source is.
func makeTarget(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(target, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|unix.O_NOFOLLOW, 0o660)
	if err != nil {
		return err
	}
	return f.Close()
}

// Unmount implements Mounts.
func (h *hostMounts) Unmount(_ context.Context, target string) error {
	switch err := unmountAll(target); {
	case errors.Is(err, unix.EBUSY):
		return storage.E("unmount", storage.KindConflict, target, fmt.Errorf("%w: something uses it", err))
	case err != nil:
		return storage.E("unmount", storage.KindInternal, target, err)
	}
	return nil
}

// Remove implements Mounts. It never removes what has something in it.
func (h *hostMounts) Remove(_ context.Context, target string) error {
	info, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
	case !info.IsDir() && info.Size() > 0:
		err = errors.New("it is a file that is not empty")
	default:
		err = os.Remove(target)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return storage.E("remove", storage.KindInternal, target, err)
	}
	return nil
}

// Grow implements Mounts.
func (h *hostMounts) Grow(ctx context.Context, d Disk, path string) error {
	device := d.Path
	held, err := blockdev.OpenOwned(d.Path, d.Identity, false)
	if err != nil {
		return err
	}
	defer held.Close()
	resize := mount.NewResizeFs(h.tools(ctx))
	need, err := resize.NeedResize(device, path)
	if err == nil && need {
		_, err = resize.Resize(device, path)
	}
	if err != nil {
		return storage.E("grow the file system of", storage.KindInternal, "device "+device, err)
	}
	return nil
}

// Usage implements Mounts.
func (h *hostMounts) Usage(_ context.Context, path string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Usage{}, storage.E("look at", storage.KindIO, path, err)
	}
	block := st.Bsize
	return Usage{TotalBytes: int64(st.Blocks) * block, UsedBytes: int64(st.Blocks-st.Bfree) * block, AvailableBytes: int64(st.Bavail) * block,
		TotalInodes: int64(st.Files), UsedInodes: int64(st.Files - st.Ffree), AvailableInodes: int64(st.Ffree)}, nil
}
