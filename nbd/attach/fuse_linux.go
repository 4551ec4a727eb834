package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/nbd"
)

// FUSE makes loop devices over files of FUSE file systems, one file system a device. It is made by NewFUSE. It implements
// Driver.
//
// The file system is mounted at Config.Dir/NAME until its device is noted (Device.Settle), and after that nowhere: the loop device
// keeps it. Nobody can ask it for anything then, and wait for a gateway that is gone, and nobody unmounts it when the host is
// shut down, which would fail. Linux before 5.15 has no number by which the device is found again: there it stays mounted.
type FUSE struct {
	config  Config
	budget  *fuseBudget
	buffers sync.Pool // *[]byte of requestBytes
}

var _ Driver = (*FUSE)(nil)

// NewFUSE returns the driver.
func NewFUSE(config Config) (*FUSE, error) {
	config.setDefaults()
	if config.Dir == "" || len(config.Helper) == 0 || config.Keeper == nil {
		return nil, storage.E("make", storage.KindInvalid, "FUSE driver", errors.New("a Dir, a Helper and a Keeper are required"))
	}
	return &FUSE{config: config, budget: newFUSEBudget(config.BufferBytes),
		buffers: sync.Pool{New: func() any { b := make([]byte, requestBytes); return &b }}}, nil
}

const (
	fuseType    = "fuse.storaged"
	mountFlags  = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	helpTimeout = 20 * time.Second
	connections = "/sys/fs/fuse/connections"
)

// Available implements Driver.
func (d *FUSE) Available() error {
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return storage.E("attach by", storage.KindUnsupported, "FUSE",
				fmt.Errorf("%w; as root: modprobe fuse loop", err))
		}
		_ = f.Close()
	}
	return nil
}

// showConnections has the kernel show its FUSE connections where nothing else has: a container sees an empty directory there.
// By it a connection is ended that nobody serves; without it that takes longer, and is not an error.
func showConnections() {
	if entries, err := os.ReadDir(connections); err == nil && len(entries) == 0 {
		_ = unix.Mount("fusectl", connections, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
}

func (d *FUSE) mountPoint(name string) string { return filepath.Join(d.config.Dir, name) }
func (d *FUSE) file(name string) string       { return FUSEFile(d.config.Dir, name) }

// FUSEFile is the file under dir that the loop device of a name lies over. deploy/udev knows devices by it where they stay
// mounted.
func FUSEFile(dir, name string) string { return filepath.Join(dir, name, diskName) }
func keptName(name string) string      { return "fuse/" + name }

// Attach implements Driver.
func (d *FUSE) Attach(ctx context.Context, r Request) (Device, error) {
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	if err := d.Detach(ctx, r); err != nil {
		return nil, err
	}
	r.Device, r.Identity = "", blockdev.Identity{} // of the one before
	export, err := openDevice(ctx, r)
	if err != nil {
		return nil, err
	}
	fd, err := d.mount(r)
	if err != nil {
		return nil, errors.Join(storage.E("attach", storage.KindIO, "device "+r.Name, err), export.Close(false))
	}
	dev := d.serve(r, fd, export)
	path, err := d.layLoop(ctx, r)
	if err == nil {
		err = dev.identify(path)
	}
	if err != nil {
		dev.Stop(ctx)
		return nil, errors.Join(storage.E("attach", storage.KindIO, "device "+r.Name, err), d.Detach(ctx, r))
	}
	return dev, nil
}

// mount mounts the file system and has the keeper hold its connection before anything depends on it.
func (d *FUSE) mount(r Request) (*os.File, error) {
	at := d.mountPoint(r.Name)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", fd, maxIOBytes)
	if err := unix.Mount("storaged", at, fuseType, mountFlags, options); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", at, err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "/dev/fuse") // only now: a descriptor that was not mounted yet can never be polled
	if err := d.config.Keeper.Keep(keptName(r.Name), f); err != nil {
		return nil, errors.Join(err, f.Close(), d.tidy(r.Name))
	}
	return f, nil
}

func (d *FUSE) layLoop(ctx context.Context, r Request) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, helpTimeout)
	defer cancel()
	args := []string{"loop-attach", d.file(r.Name)}
	if r.ReadOnly {
		args = append(args, "ro")
	}
	return d.config.help(ctx, args...)
}

// serve begins to serve a connection.
func (d *FUSE) serve(r Request, fd *os.File, export nbd.Export) *fuseDevice {
	dev := &fuseDevice{driver: d, name: r.Name, fd: fd, export: export, server: newFuseServer(d, fd, export, r),
		ended: make(chan struct{})}
	dev.end = sync.OnceFunc(func() { close(dev.ended) })
	dev.server.resends = dev.noteResends
	dev.wg.Go(func() {
		dev.server.run()
		if dev.server.gone.Load() {
			dev.end()
		}
	})
	return dev
}

// Resume implements Driver.
func (d *FUSE) Resume(ctx context.Context, r Request) (Device, error) {
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	fail := func(kind storage.Kind, why error) error { return storage.E("resume", kind, "device "+r.Name, why) }
	path, connection := d.locate(r)
	if path == "" && connection == 0 {
		return nil, fail(storage.KindNotFound, nil)
	}
	fd, err := d.config.Keeper.Kept(keptName(r.Name))
	switch {
	case err != nil:
		return nil, fail(storage.KindUnavailable, err)
	case fd == nil || path == "" || connection == 0:
		if fd != nil {
			_ = fd.Close()
		}
		return nil, fail(storage.KindIO, errors.New("the connection to the kernel was lost with the gateway and its keeper, or the device was taken apart; "+
			"what uses it gets errors, and what was written and not synced is lost: detach it by force and attach it again"))
	}
	if why := d.lost(r.Name, connection); why != nil {
		return nil, errors.Join(fail(storage.KindIO, why), fd.Close())
	}
	export, err := openDevice(ctx, r)
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	if err := os.Remove(d.drainedFile(r.Name)); err != nil && !errors.Is(err, os.ErrNotExist) { // from here on requests are read
		return nil, errors.Join(fail(storage.KindIO, err), export.Close(false), fd.Close())
	}
	dev := d.serve(r, fd, export)
	if r.Device == path && !r.Identity.IsZero() {
		dev.path, dev.is = path, r.Identity
	} else if err := dev.identify(path); err != nil {
		dev.Stop(ctx)
		return nil, err
	}
	if d.resends(r.Name) {
		if _, err := fd.Write(resendMessage()); err != nil {
			d.config.Logger.Warn("the kernel does not send unanswered requests again", "device", r.Name, "error", err)
		}
	}
	if loopGoesWithUser(path) { // an earlier process, and its helper, were killed in the middle of a detach
		dev.wg.Go(dev.keepLoop)
	}
	return dev, nil
}

// keepLoop has the loop device stay when its last user closes it. It is called when the device is served.
func (v *fuseDevice) keepLoop() {
	ctx, cancel := context.WithTimeout(v.server.ctx, helpTimeout)
	defer cancel()
	if _, err := v.driver.config.help(ctx, "loop-keep", v.path); err != nil && v.server.ctx.Err() == nil {
		v.driver.config.Logger.Warn("the device goes when its last user closes it", "device", v.path, "error", err)
	}
}

// locate returns the loop device of a name and the number of the FUSE connection below it; zero values for what is not there.
// Once it is settled, and after the end of the mount namespace that it was made in (a container's), no path leads to the file any
// more: the loop device is known by its number then, and the file system, which it keeps, by the device number of the file.
func (d *FUSE) locate(r Request) (path string, connection uint64) {
	path, connection = loopOver(d.file(r.Name)), d.connection(r.Name)
	if path == "" && r.Identity.Sequence != 0 && blockdev.Sequence(r.Device) == r.Identity.Sequence {
		path = r.Device
	}
	if connection == 0 && path != "" && path == r.Device {
		connection = uint64(unix.Minor(r.Identity.FileDevice))
	}
	return path, connection
}

// Left reports whether there is a block device of a name, which somebody may have open.
func (d *FUSE) Left(r Request) bool {
	path, _ := d.locate(r)
	return path != ""
}

// lost returns why a device cannot be served any more: requests that the last process had read and not answered, which
// the kernel will not send again. To answer them with errors is then the only way to let their senders go on.
//
// What waits after a process that has ended in order was not read yet, and is served by the next one.
func (d *FUSE) lost(name string, connection uint64) error {
	if d.resends(name) || d.drained(name, connection) {
		return nil
	}
	showConnections()
	dir := filepath.Join(connections, strconv.FormatUint(connection, 10))
	text, err := os.ReadFile(filepath.Join(dir, "waiting"))
	if n := strings.TrimSpace(string(text)); err == nil && n == "0" {
		return nil
	}
	_ = os.WriteFile(filepath.Join(dir, "abort"), []byte("1"), 0) // detaching by force does it again
	return errors.New("requests were under way when the last gateway ended, and this kernel (before Linux 6.9) does not send them again; detach the device by force and attach it again")
}

// resendsFile says that the kernel has offered to send requests again. The kernel says so once, to the process that
// mounts.
func (d *FUSE) resendsFile(name string) string { return d.mountPoint(name) + ".resends" }

func (d *FUSE) resends(name string) bool {
	_, err := os.Stat(d.resendsFile(name))
	return err == nil
}

// drainedFile says that the last process has answered all that it had read of a connection, whose number is in it.
func (d *FUSE) drainedFile(name string) string { return d.mountPoint(name) + ".drained" }

func (d *FUSE) drained(name string, connection uint64) bool {
	text, err := os.ReadFile(d.drainedFile(name))
	return err == nil && string(text) == strconv.FormatUint(connection, 10)
}

// noteDrained keeps that, for the process to come. Without it the kernel's requests are taken for lost if it does not send them
// again.
func (v *fuseDevice) noteDrained() {
	if v.server.unanswered.Load() || v.server.gone.Load() {
		return
	}
	n := strconv.FormatUint(uint64(unix.Minor(v.is.FileDevice)), 10)
	if err := os.WriteFile(v.driver.drainedFile(v.name), []byte(n), 0o600); err != nil {
		v.driver.config.Logger.Warn("not noted that all requests were answered", "device", v.name, "error", err)
	}
}

// connection returns the number of the FUSE connection that is mounted for a device; 0: none is.
func (d *FUSE) connection(name string) uint64 {
	at := d.mountPoint(name)
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != at || i.FSType != fuseType, false })
	if err != nil || len(mounts) == 0 {
		return 0
	}
	return uint64(mounts[len(mounts)-1].Minor) // the last mount is the visible one
}

// Detach implements Driver: the connection is ended first, so that nothing waits for it.
func (d *FUSE) Detach(ctx context.Context, r Request) error {
	name := r.Name
	if err := checkName(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, helpTimeout)
	defer cancel()
	var errs []error
	path, n := d.locate(r)
	if path != "" {
		endRetries(path)
	}
	if n != 0 {
		showConnections()
		if err := os.WriteFile(filepath.Join(connections, strconv.FormatUint(n, 10), "abort"), []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			d.config.Logger.Warn("FUSE connection not aborted", "device", name, "error", err)
		}
	}
	if path != "" {
		if _, err := d.config.help(ctx, "loop-detach", path, d.file(name), strconv.FormatUint(r.Identity.Sequence, 10), "force"); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, d.tidy(name))
	if err := errors.Join(errs...); err != nil {
		return storage.E("detach", storage.KindIO, "device "+name, err)
	}
	return nil
}

// hide unmounts the file system of a name, which whoever has its file open keeps.
func (d *FUSE) hide(name string) error {
	at := d.mountPoint(name)
	for d.connection(name) != 0 {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return nil
}

// tidy removes what is left when the loop device is gone.
func (d *FUSE) tidy(name string) error {
	at := d.mountPoint(name)
	if err := d.hide(name); err != nil {
		return err
	}
	_ = os.Remove(d.resendsFile(name)) // not there, most often
	_ = os.Remove(d.drainedFile(name))
	_ = os.Remove(d.config.turnFile(name)) // whoever waits for it finds that the device is gone
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return d.config.Keeper.Forget(keptName(name))
}

// fuseDevice is a device of FUSE. It implements Device.
type fuseDevice struct {
	driver *FUSE
	name   string
	path   string
	is     blockdev.Identity
	fd     *os.File
	export nbd.Export
	server *fuseServer
	wg     sync.WaitGroup
	ended  chan struct{} // closed by end
	end    func()        // may be called more than once
	once   sync.Once     // of Stop
}

// Path implements Device.
func (v *fuseDevice) Path() string { return v.path }

// identify notes which device it is that lies over the file. The number is looked at before and after, because somebody may
// free the device, and another take it, in between.
func (v *fuseDevice) identify(path string) error {
	v.path = path
	v.is = blockdev.Identity{FileDevice: unix.Mkdev(0, uint32(v.driver.connection(v.name))), FileInode: diskNode, Sequence: blockdev.Sequence(path)}
	if loopFile(path) != v.driver.file(v.name) {
		return v.changed()
	}
	return v.Check()
}

// Identity implements Device.
func (v *fuseDevice) Identity() blockdev.Identity { return v.is }

// Check implements Device. The kernel's number of the device says it alone; where there is none, the path of the file that
// the device lies over does, which is a path in a directory of the gateway's own.
func (v *fuseDevice) Check() error {
	if n := blockdev.Sequence(v.path); n != v.is.Sequence || n == 0 && loopFile(v.path) != v.driver.file(v.name) {
		return v.changed()
	}
	return nil
}

func (v *fuseDevice) changed() error {
	return storage.E("look at", storage.KindConflict, "device "+v.path, errors.New("the loop device was taken from the volume (losetup -d), and may be another's by now"))
}

// Settle implements Device.
func (v *fuseDevice) Settle() error {
	if v.is.Sequence == 0 {
		return nil
	}
	return v.driver.hide(v.name)
}

// SizeBytes implements Device.
func (v *fuseDevice) SizeBytes() int64 { return deviceBytes(v.path) }

// Ended implements Device.
func (v *fuseDevice) Ended() <-chan struct{} { return v.ended }

// noteResends keeps what the kernel offers, for the processes to come.
func (v *fuseDevice) noteResends(can bool) {
	if !can {
		return
	}
	if err := os.WriteFile(v.driver.resendsFile(v.name), nil, 0o600); err != nil {
		v.driver.config.Logger.Warn("not noted that the kernel sends requests again", "device", v.name, "error", err)
	}
}

// Resize implements Device.
func (v *fuseDevice) Resize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, helpTimeout)
	defer cancel()
	_, err := v.driver.config.help(ctx, "loop-resize", v.path, v.driver.file(v.name))
	return err
}

// Sync implements Device.
func (v *fuseDevice) Sync(ctx context.Context) error {
	return v.driver.config.helpInTurn(ctx, v.name, "device-sync", v.path)
}

// Unmount implements Device.
func (v *fuseDevice) Unmount(ctx context.Context, lazy bool) error {
	if err := v.Check(); err != nil {
		return err
	}
	return v.driver.config.unmount(ctx, v.name, v.path, lazy)
}

// Detach implements Device.
func (v *fuseDevice) Detach(ctx context.Context, force bool) error {
	if !force {
		helping, cancel := context.WithTimeout(ctx, helpTimeout)
		defer cancel()
		if v.Check() == nil {
			err := v.driver.config.helpInTurn(helping, v.name, "loop-detach", v.path, v.driver.file(v.name), strconv.FormatUint(v.is.Sequence, 10))
			if err != nil {
				return notLetGo(v.path, err)
			}
		}
	}
	if err := v.driver.Detach(ctx, Request{Name: v.name, Device: v.path, Identity: v.is}); err != nil {
		return err
	}
	v.end()
	v.server.cancel() // nobody waits for answers any more
	v.Stop(ctx)
	return nil
}

// Stop implements Device.
func (v *fuseDevice) Stop(ctx context.Context) {
	v.once.Do(func() {
		v.server.stop(ctx)
		v.wg.Wait()
		v.noteDrained()
		_ = v.fd.Close()         // the keeper holds another one
		_ = v.export.Close(true) // has no error that is not the export's own
	})
}
