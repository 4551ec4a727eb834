package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
)

// keeperGroup is the control group, below the root, that a keeper on the host moves to. What stayed in the container's group
// would end with the container.
const keeperGroup = "storaged-keeper"

// moveToHost takes this process out of its container, and runs the program anew with these arguments. init is the directory in
// /proc of the host's first process, whose control groups and mount namespace it moves to. It returns only if that failed.
// The container must see the host's processes (hostPID: true in a pod), and be privileged.
func moveToHost(init string, args []string) error {
	fail := func(what string, err error) error {
		return storage.E("move the keeper to the host", storage.KindUnsupported, what, fmt.Errorf("%w; the gateway's container needs the host's processes (hostPID: true) and all privileges", err))
	}
	runtime.LockOSThread() // namespaces are a thread's until the program is run anew; nothing follows if that fails
	theirs, err := os.Readlink(filepath.Join(init, "ns/mnt"))
	if err != nil {
		return fail(init, err)
	}
	if ours, err := os.Readlink("/proc/thread-self/ns/mnt"); err != nil || ours == theirs {
		return fail(init, errors.Join(err, errors.New("it is in this mount namespace: either this is no container, or that is not the host's first process")))
	}
	program, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("this program", err)
	}
	mounts, err := unix.Open(filepath.Join(init, "ns/mnt"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("mount namespace", err)
	}
	if err := enterGroups(init); err != nil {
		return fail("control groups", err)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fail("this thread", err)
	}
	if err := unix.Setns(mounts, unix.CLONE_NEWNS); err != nil {
		return fail("mount namespace", err)
	}
	path := "/proc/self/fd/" + strconv.Itoa(program)
	return fail("this program", syscall.Exec(path, args, os.Environ()))
}

// enterGroups moves this process to keeperGroup in the control groups of version 2, and to the root of each hierarchy of version
// 1, as the process of init sees them. Its own namespace of groups would not let it out.
func enterGroups(init string) error {
	ns, err := unix.Open(filepath.Join(init, "ns/cgroup"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	if err := unix.Setns(ns, unix.CLONE_NEWCGROUP); err != nil {
		return os.NewSyscallError("setns", err)
	}
	f, err := os.Open(filepath.Join(init, "mountinfo"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	mounts, err := mountinfo.GetMountsFromReader(f, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err == nil && len(mounts) == 0 {
		err = errors.New("the host has none mounted")
	}
	if err != nil {
		return err
	}
	for _, m := range mounts {
		dir := filepath.Join(init, "root", m.Mountpoint)
		if m.FSType == "cgroup2" {
			dir = filepath.Join(dir, keeperGroup)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return err
		}
	}
	return nil
}
