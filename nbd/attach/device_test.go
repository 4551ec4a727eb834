//go:build devices

package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// helperVariable makes this test binary the drivers' helper.
const helperVariable = "ATTACH_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperVariable) != "" && len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		err := Helper(context.Background(), os.Args[1:], os.Stdout)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(HelperExitCode(err))
	}
	_ = os.Setenv(helperVariable, "1")
	os.Exit(m.Run())
}

// rig is a FUSE driver and a volume in memory.
type rig struct {
	driver  *FUSE
	backend *nbdtest.Backend
	request Request
}

func newRig(t *testing.T, sizeBytes uint64) *rig {
	t.Helper()
	dir := t.TempDir()
	keeper := NewKeeperProcess(filepath.Join(dir, "keeper.sock"), []string{os.Args[0]})
	// A directory that the kernel's table of mounts writes otherwise.
	driver, err := NewFUSE(Config{Dir: filepath.Join(dir, "m n t"), Helper: []string{os.Args[0]}, Keeper: keeper})
	if err != nil {
		t.Fatal(err)
	}
	if err := driver.Available(); err != nil {
		t.Fatalf("these tests need root, /dev/fuse and loop devices: %v", err)
	}
	r := &rig{driver: driver, backend: nbdtest.NewBackend()}
	r.backend.Add("disk", sizeBytes)
	r.request = Request{Name: "disk", Open: func(ctx context.Context) (nbd.Export, error) { return r.backend.Open(ctx, "disk", nbd.Peer{}) }}
	t.Cleanup(func() {
		if err := driver.Detach(context.WithoutCancel(t.Context()), r.request); err != nil {
			t.Errorf("clean up: %v", err)
		}
		_ = keeper.Close()
	})
	return r
}

// attach attaches the device, and notes it as its owner does.
func (r *rig) attach(t *testing.T) Device {
	t.Helper()
	d, err := r.driver.Attach(t.Context(), r.request)
	if err != nil {
		t.Fatal(err)
	}
	r.request.Device, r.request.Identity = d.Path(), d.Identity()
	if err := d.Settle(); err != nil {
		t.Fatal(err)
	}
	return d
}

// A device that is noted has no file system that shows: nobody who looks at mounts waits for its gateway, and nobody has to unmount it
// before the host ends. It is found by what was noted, also where the gateway was killed before it was hidden; and who frees
// its loop device frees all of it. The lines are those in hide, and in locate that compare sequence numbers.
func TestSettled(t *testing.T) {
	r := newRig(t, 16<<20)
	d, err := r.driver.Attach(t.Context(), r.request)
	if err != nil {
		t.Fatal(err)
	}
	stop := func() {
		gone, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		d.Stop(gone)
	}
	stop() // killed before the device was noted: it is found by its mount
	if d, err = r.driver.Resume(t.Context(), r.request); err != nil {
		t.Fatal(err)
	}
	r.request.Device, r.request.Identity = d.Path(), d.Identity()
	stop() // and after it was
	if d, err = r.driver.Resume(t.Context(), r.request); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Settle(); err != nil {
			t.Fatal(err)
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), strings.ReplaceAll(r.driver.mountPoint("disk"), " ", `\040`)) {
			t.Fatalf("it shows still (%v):\n%s", err, mounts)
		}
	}
	stop()
	if _, err := os.Stat(r.driver.file("disk")); !errors.Is(err, os.ErrNotExist) { // asks no gateway
		t.Errorf("the file's path leads to something: %v", err)
	}
	if d, err = r.driver.Resume(t.Context(), r.request); err != nil {
		t.Fatal(err)
	}
	writeFile(t, d.Path(), bytes.Repeat([]byte{3}, 1<<20))
	command(t, "losetup", "-d", d.Path())
	select {
	case <-d.Ended():
	case <-time.After(10 * time.Second):
		t.Error("the file system outlives its device")
	}
	if err := d.Check(); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("the device that was freed is taken for it: %v", err)
	}
	stop()
}

func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mounted mounts a device for the rest of the test, or until unmount is called.
func mounted(t *testing.T, device string) (at string, unmount func()) {
	t.Helper()
	at = t.TempDir()
	command(t, "mount", device, at)
	done := false
	unmount = func() {
		if !done {
			done = true
			command(t, "umount", at)
		}
	}
	t.Cleanup(func() { exec.Command("umount", "-l", at).Run() }) // unmounted already, most often
	return at, unmount
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		_, err = f.Write(data)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestFileSystemOnFUSE(t *testing.T) {
	for _, mkfs := range []string{"mkfs.ext4 -q", "mkfs.xfs -q -f"} {
		t.Run(strings.Fields(mkfs)[0], func(t *testing.T) {
			r := newRig(t, 320<<20)
			d := r.attach(t)
			command(t, append(strings.Fields(mkfs), d.Path())...)
			at, unmount := mounted(t, d.Path())
			want := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
			writeFile(t, filepath.Join(at, "file"), want)
			if err := d.Detach(t.Context(), false); !errors.Is(err, storage.ErrConflict) {
				t.Errorf("detach while mounted: %v, want KindConflict", err)
			}
			unmount()
			if err := d.Detach(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			d = r.attach(t)
			if strings.Contains(mkfs, "ext4") {
				command(t, "e2fsck", "-fn", d.Path())
			} else {
				command(t, "xfs_repair", "-n", d.Path())
			}
			at, unmount = mounted(t, d.Path())
			if got, err := os.ReadFile(filepath.Join(at, "file")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file was not read back: %d bytes, %v", len(got), err)
			}
			command(t, "fstrim", at)
			unmount()
			if err := d.Detach(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if err := d.Detach(t.Context(), false); err != nil {
				t.Errorf("detach again: %v", err)
			}
		})
	}
}

// TestGrow: a mounted file system grows with its volume. It is xfs, because to grow ext4 takes CAP_SYS_RESOURCE too.
func TestGrow(t *testing.T) {
	const before, after = 320 << 20, 480 << 20
	r := newRig(t, before)
	d := r.attach(t)
	command(t, "mkfs.xfs", "-q", "-f", d.Path())
	at, unmount := mounted(t, d.Path())
	export, err := r.backend.Open(t.Context(), "disk", nbd.Peer{})
	if err != nil {
		t.Fatal(err)
	}
	if err := export.(nbd.Resizer).Resize(t.Context(), after); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.SizeBytes(); got != after {
		t.Fatalf("the device has %d bytes", got)
	}
	command(t, "xfs_growfs", at)
	writeFile(t, filepath.Join(at, "big"), make([]byte, 300<<20))
	unmount()
	command(t, "xfs_repair", "-n", d.Path())
}

// What a gateway that was killed had begun may still have the device open. It is no user of it: the next detach waits until it has
// ended. The line is the one in helpInTurn that has helpers of one device wait for each other.
func TestOrphanIsNoUser(t *testing.T) {
	r := newRig(t, 16<<20)
	d := r.attach(t)
	turn := r.driver.config.turnFile("disk")
	orphan, err := os.OpenFile(turn, os.O_RDWR|os.O_CREATE, 0o600) // what a helper does that was left behind
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(orphan.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	opened, err := os.OpenFile(d.Path(), os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.Detach(t.Context(), false) }()
	awaitWaiter(t, turn, done)
	if err := errors.Join(opened.Close(), orphan.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("detach: %v", err)
	}
	if _, err := os.Stat(turn); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file for turns is left: %v", err)
	}
}

// awaitWaiter returns when a process waits for the lock on a file; it fails the test when what is done ends before.
func awaitWaiter(t *testing.T, path string, done <-chan error) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
	for tick := time.Tick(10 * time.Millisecond); ; {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "-> FLOCK") && strings.Contains(line, inode) {
				return
			}
		}
		select {
		case err := <-done:
			t.Fatalf("it did not wait: %v", err)
		case <-tick:
		}
	}
}

// A gateway that was killed with its helper in the middle of a detach has left a loop device that goes with its last user. Served by the next
// one, it stays. The line is the one in Resume that calls keepLoop.
func TestKilledWhileDetachingLoop(t *testing.T) {
	r := newRig(t, 16<<20)
	d := r.attach(t)
	f, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	helper, err := os.Open(d.Path())
	if err == nil {
		err = errors.Join(unix.IoctlSetInt(int(helper.Fd()), unix.LOOP_CLR_FD, 0), helper.Close())
	}
	if err != nil || !loopGoesWithUser(d.Path()) {
		t.Fatalf("the kernel does not let it go with its user: %v", err)
	}
	d.Stop(t.Context())
	next, err := r.driver.Resume(t.Context(), r.request)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); loopGoesWithUser(d.Path()) && time.Now().Before(deadline); {
		<-time.After(10 * time.Millisecond)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.Check(); err != nil || deviceBytes(next.Path()) != 16<<20 {
		t.Errorf("the device has gone with its user: %v, %d bytes", err, deviceBytes(next.Path()))
	}
	if err := next.Detach(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestNextProcessServes: between two servers requests wait, and what the first had read and not answered is served by the
// second. The line that keeps it is the resendMessage in FUSE.Resume.
func TestNextProcessServes(t *testing.T) {
	r := newRig(t, 64<<20)
	hold := make(chan struct{})
	started := make(chan struct{}, 64)
	open := r.request.Open
	r.request.Open = func(ctx context.Context) (nbd.Export, error) {
		e, err := open(ctx)
		return &held{Export: e, hold: hold, started: started}, err
	}
	d := r.attach(t)
	f, err := os.OpenFile(d.Path(), os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want := bytes.Repeat([]byte{7}, 64<<10)
	wrote := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(want, 1<<20)
		wrote <- err
	}()
	<-started
	gone, cancel := context.WithCancel(t.Context())
	cancel() // no time to answer anything
	d.Stop(gone)
	select {
	case err := <-wrote:
		t.Fatalf("the write ended without a server: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	r.request.Open = open
	next, err := r.driver.Resume(t.Context(), r.request)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-wrote:
		if err != nil {
			t.Fatalf("the application saw an error: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the write was not sent again")
	}
	if next.Path() != d.Path() {
		t.Errorf("the device has moved from %s to %s", d.Path(), next.Path())
	}
	_ = f.Close()
	if err := next.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.driver.Resume(t.Context(), r.request); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("resume what is not there: %v", err)
	}
}

// held is an export whose writes wait until their context ends.
type held struct {
	nbd.Export
	hold    chan struct{}
	started chan struct{}
}

func (h *held) WriteAt(ctx context.Context, p []byte, off int64) error {
	h.started <- struct{}{}
	select {
	case <-h.hold:
		return h.Export.WriteAt(ctx, p, off)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestForce: a device in use goes away by force, and its user gets errors instead of waiting for ever.
func TestForce(t *testing.T) {
	r := newRig(t, 64<<20)
	d := r.attach(t)
	f, err := os.OpenFile(d.Path(), os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := d.Detach(t.Context(), false); !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("detach while open: %v, want KindConflict", err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatalf("a write after a refused detach: %v", err)
	}
	if err := d.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err == nil {
		t.Error("a write to a device that was removed had no error")
	}
	select {
	case <-d.Ended():
	case <-time.After(10 * time.Second):
		t.Error("the device has not ended")
	}
}

// TestZeroes: what a loop device makes of discard and write-zeroes reads as zeroes afterwards.
func TestZeroes(t *testing.T) {
	r := newRig(t, 16<<20)
	d := r.attach(t)
	writeFile(t, d.Path(), bytes.Repeat([]byte{1}, 16<<20))
	command(t, "blkdiscard", "-z", "-o", "4096", "-l", "8192", d.Path())
	command(t, "blkdiscard", "-o", "1048576", "-l", "1048576", d.Path())
	v, err := r.backend.Open(t.Context(), "disk", nbd.Peer{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ off, n, want int }{{0, 4096, 1}, {4096, 8192, 0}, {12288, 4096, 1}, {1 << 20, 1 << 20, 0}, {2 << 20, 4096, 1}} {
		p := make([]byte, tc.n)
		if err := v.ReadAt(t.Context(), p, int64(tc.off)); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{byte(tc.want)}, tc.n)) {
			t.Errorf("%d bytes at %d: %v, or not %d throughout", tc.n, tc.off, err, tc.want)
		}
	}
}

func TestReadOnly(t *testing.T) {
	r := newRig(t, 16<<20)
	r.request.ReadOnly = true
	d := r.attach(t)
	if text, err := os.ReadFile("/sys/block/" + filepath.Base(d.Path()) + "/ro"); err != nil || strings.TrimSpace(string(text)) != "1" {
		t.Errorf("the device is not read-only: %q, %v", text, err)
	}
	if f, err := os.OpenFile(d.Path(), os.O_RDWR|os.O_SYNC, 0); err == nil { // some kernels refuse here, others below
		if _, err := f.WriteAt(make([]byte, 4096), 0); err == nil {
			t.Error("it was written to")
		}
		_ = f.Close()
	}
}

// A loop device that was freed and taken by somebody else between being looked up and being detached is left alone. The line
// is the one in loopDetach that looks at its file.
func TestLoopOfAnother(t *testing.T) {
	file := filepath.Join(t.TempDir(), "theirs")
	writeFile(t, file, make([]byte, 1<<20))
	device, err := loopAttach(file, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, force := range []bool{false, true} {
		if err := loopDetach(device, "/ours", 0, force); err != nil {
			t.Error(err)
		}
		if loopFile(device) != file {
			t.Fatalf("%s was taken off its file (force: %t)", device, force)
		}
	}
	if err := loopDetach(device, file, 0, false); err != nil || loopFile(device) != "" {
		t.Errorf("%s lies over %q still: %v", device, loopFile(device), err)
	}
}

// A loop device that was freed by somebody else, and is over another file by now, is not taken for the volume's: not by the
// driver, and not by whoever opens it by the identity that was said. One that the path leads to still is. The lines are
// the comparison of sequence numbers in fuseDevice.Check and that in blockdev.OpenOwned.
func TestLoopLostToAnother(t *testing.T) {
	r := newRig(t, 16<<20)
	d := r.attach(t)
	f, err := blockdev.OpenOwned(d.Path(), d.Identity(), true)
	if err != nil {
		t.Fatalf("the device is not taken for itself: %v", err)
	}
	if _, err := blockdev.OpenOwned(d.Path(), d.Identity(), true); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("a device that is claimed was claimed: %v", err)
	}
	_ = f.Close()
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	command(t, "losetup", "-d", d.Path())
	theirs := filepath.Join(t.TempDir(), "theirs")
	writeFile(t, theirs, make([]byte, 1<<20))
	command(t, "losetup", d.Path(), theirs)
	defer command(t, "losetup", "-d", d.Path())
	if err := d.Check(); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("the driver says of another's device: %v", err)
	}
	for name, is := range map[string]blockdev.Identity{"all": d.Identity(),
		"old kernels'": {FileDevice: d.Identity().FileDevice, FileInode: d.Identity().FileInode}} {
		if f, err := blockdev.OpenOwned(d.Path(), is, false); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("%s: another's device was opened: %v", name, err)
			_ = f.Close()
		}
	}
	if err := d.Detach(t.Context(), false); err != nil {
		t.Error(err)
	}
	if loopFile(d.Path()) != theirs {
		t.Error("the other's device was taken apart")
	}
}

// insideVariable has the test binary attach a device in a mount namespace of its own, and be killed there.
const insideVariable = "ATTACH_TEST_INSIDE"

// hostVariable is where the host's first process is to be found from there.
const hostVariable = "ATTACH_TEST_HOST"

// inNamespace attaches a device in a mount namespace that is gone when it returns, with the process that served it; the keeper lives on.
func inNamespace(t *testing.T, dir string, extra ...func(*exec.Cmd)) Request {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "TestInsideNamespace", "-test.count", "1")
	cmd.Env = append(os.Environ(), insideVariable+"="+dir)
	for _, e := range extra {
		e(cmd)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The directory is the test's own in both namespaces.
	text, err := os.ReadFile(filepath.Join(dir, "noted"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	device, identity, _ := strings.Cut(string(text), "\n")
	r := Request{Name: "disk", Device: device}
	if r.Identity, err = blockdev.ParseIdentity(identity); err != nil {
		t.Fatal(err)
	}
	return r
}

// awaitUnreachable waits until no path leads to the file of a loop device any more.
func awaitUnreachable(t *testing.T, device string) {
	t.Helper()
	deadline, look := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer look.Stop()
	for loopFile(device) != "/disk" {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("the file of %s is still %s", device, loopFile(device))
		}
	}
}

// TestInsideNamespace is what inNamespace runs.
func TestInsideNamespace(t *testing.T) {
	dir := os.Getenv(insideVariable)
	if dir == "" {
		return
	}
	driver, backend := driverIn(t, dir)
	driver.config.Keeper.(*KeeperProcess).host = os.Getenv(hostVariable)
	d, err := driver.Attach(t.Context(), Request{Name: "disk", Open: func(ctx context.Context) (nbd.Export, error) { return backend.Open(ctx, "disk", nbd.Peer{}) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "noted"), []byte(d.Path()+"\n"+d.Identity().String()), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Exit(0) // as if it was killed: the device stays
}

func driverIn(t *testing.T, dir string) (*FUSE, *nbdtest.Backend) {
	t.Helper()
	keeper := NewKeeperProcess(filepath.Join(dir, "keeper.sock"), []string{os.Args[0]})
	driver, err := NewFUSE(Config{Dir: filepath.Join(dir, "mnt"), Helper: []string{os.Args[0]}, Keeper: keeper})
	if err != nil {
		t.Fatal(err)
	}
	backend := nbdtest.NewBackend()
	backend.Add("disk", 16<<20)
	return driver, backend
}

// A gateway's container ends with its mount namespace: no path leads to the device's file any more. Where the keeper lives on,
// the next gateway goes on with the device that was noted, lets it grow and removes it; where it was killed with the rest, the device
// is said to be lost, and no other takes its place, and by force nothing is left of it. The line is the one in locate that
// compares sequence numbers.
func TestAfterMountNamespace(t *testing.T) {
	for _, keeperLives := range []bool{true, false} {
		t.Run(fmt.Sprintf("keeper lives: %t", keeperLives), func(t *testing.T) {
			dir := t.TempDir()
			var onHost []func(*exec.Cmd)
			if keeperLives { // outside of the namespace, which would live as long as it does
				host := exec.CommandContext(t.Context(), "sleep", "600") // stands for the first process of the host
				if err := host.Start(); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = host.Process.Kill(); _ = host.Wait() }()
				onHost = append(onHost, func(c *exec.Cmd) { c.Env = append(c.Env, fmt.Sprintf("%s=/proc/%d", hostVariable, host.Process.Pid)) })
			}
			noted := inNamespace(t, dir, onHost...)
			if !keeperLives { // it ends with the container, and the namespace with it
				if err := syscall.Kill(int(keeperPid(t, filepath.Join(dir, "keeper.sock"))), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			awaitUnreachable(t, noted.Device)
			driver, backend := driverIn(t, dir)
			defer func() { _ = driver.config.Keeper.(*KeeperProcess).Close() }()
			r := noted
			r.Open = func(ctx context.Context) (nbd.Export, error) { return backend.Open(ctx, "disk", nbd.Peer{}) }
			if !keeperLives {
				if _, err := driver.Resume(t.Context(), r); !errors.Is(err, storage.ErrIO) {
					t.Errorf("a lost device is resumed: %v", err)
				}
				if err := driver.Detach(t.Context(), r); err != nil {
					t.Error(err)
				}
			} else {
				d, err := driver.Resume(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				if d.Path() != noted.Device || d.Check() != nil {
					t.Errorf("resumed %s, noted %s: %v", d.Path(), noted.Device, d.Check())
				}
				writeFile(t, d.Path(), bytes.Repeat([]byte{3}, 1<<20))
				export, err := backend.Open(t.Context(), "disk", nbd.Peer{})
				if err != nil {
					t.Fatal(err)
				}
				if err := export.(nbd.Resizer).Resize(t.Context(), 32<<20); err != nil {
					t.Fatal(err)
				}
				if err := d.Resize(t.Context()); err != nil || d.SizeBytes() != 32<<20 {
					t.Errorf("it has %d bytes after it was to grow: %v", d.SizeBytes(), err)
				}
				if err := d.Detach(t.Context(), false); err != nil {
					t.Error(err)
				}
			}
			if blockdev.Sequence(noted.Device) == noted.Identity.Sequence {
				t.Errorf("%s is left behind", noted.Device)
			}
			if _, err := driver.Resume(t.Context(), r); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("resumed when it was removed: %v", err)
			}
		})
	}
}

// A keeper that moves to the host is in the host's mount namespace and in a control group of its own. So it outlives the container,
// and serves the next gateway. One that cannot move says why, and no device is made without it. The lines are those in moveToHost.
func TestKeeperOnHost(t *testing.T) {
	dir := t.TempDir()
	host := exec.CommandContext(t.Context(), "sleep", "600") // stands for the first process of the host
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Process.Kill(); _ = host.Wait() }()
	noted := inNamespace(t, dir, func(c *exec.Cmd) { c.Env = append(c.Env, fmt.Sprintf("%s=/proc/%d", hostVariable, host.Process.Pid)) })
	keeper := keeperPid(t, filepath.Join(dir, "keeper.sock"))
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", keeper))
	if err != nil {
		t.Fatal(err)
	}
	if ours, err := os.Readlink("/proc/self/ns/mnt"); err != nil || ours != theirs {
		t.Errorf("the keeper is in %s, the host in %s (%v)", theirs, ours, err)
	}
	if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", keeper)); err != nil || !strings.Contains(string(groups), "0::/"+keeperGroup+"\n") {
		t.Errorf("the keeper is in the control groups %s (%v)", groups, err)
	}
	driver, backend := driverIn(t, dir)
	defer func() { _ = driver.config.Keeper.(*KeeperProcess).Close() }()
	noted.Open = func(ctx context.Context) (nbd.Export, error) { return backend.Open(ctx, "disk", nbd.Peer{}) }
	d, err := driver.Resume(t.Context(), noted)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, d.Path(), bytes.Repeat([]byte{3}, 1<<20))
	if err := d.Detach(t.Context(), false); err != nil {
		t.Error(err)
	}
	here, _ := driverIn(t, t.TempDir())
	here.config.Keeper.(*KeeperProcess).host = fmt.Sprintf("/proc/%d", os.Getpid())
	if _, err := here.Attach(t.Context(), noted); err == nil || !strings.Contains(err.Error(), "hostPID") {
		t.Errorf("attached without a keeper: %v", err)
	}
}

// keeperPid returns the process that listens at a keeper's socket.
func keeperPid(t *testing.T, socket string) (pid int32) {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = c.Pid
		}
	}); err != nil || pid == 0 {
		t.Fatalf("whose socket it is: %d, %v", pid, err)
	}
	return pid
}
