package attach

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// NBD makes network block devices of the kernel. A device's connection is a socket pair: one end is the kernel's, the other
// is served here. When it ends, because the process that served it has, say, it is replaced by a new one; requests that were
// under way on it are sent again by the kernel, and the export sees to it that they land once. It is made by NewNBD. It
// implements Driver.
//
// A device has one connection and no request time-out (NBD_ATTR_TIMEOUT). Only then does the kernel look, when the block
// layer's timer of a request fires, whether the request's socket was replaced, and sends it again if so; with a time-out, or
// with several connections, it waits for all of that, then takes the connection for dead and gives it up, whether it is or
// only slow. The timer is the queue's io_timeout (ResendAfter), which the kernel stretches to about a second. Each look at a
// request writes a line to the kernel's log ("Possible stuck request").
//
// Devices are found again by their backend identifier, which the kernel has since Linux 5.14.
type NBD struct {
	config Config
	kernel nbdKernel
	sysfs  string      // "/sys"
	budget *nbd.Budget // of all devices' connections
	// connecting is held while the kernel gives out an index, and while the queue of one that nobody has is changed.
	connecting sync.Mutex
}

var _ Driver = (*NBD)(nil)

// NewNBD returns the driver.
func NewNBD(config Config) (*NBD, error) {
	config.setDefaults()
	if config.Dir == "" || len(config.Helper) == 0 {
		return nil, storage.E("make", storage.KindInvalid, "NBD driver", errors.New("a Dir and a Helper are required"))
	}
	budget, err := nbd.NewBudget(config.BufferBytes, maxConnections)
	if err != nil {
		return nil, err
	}
	return &NBD{config: config, budget: budget, kernel: netlinkKernel{}, sysfs: "/sys"}, nil
}

// maxConnections is how many connections all devices may have together: one each, and one more for a moment when a device
// grows or its connection is replaced.
const maxConnections = 4096

// Available implements Driver.
func (d *NBD) Available() error {
	if err := d.kernel.available(); err != nil {
		return storage.E("attach by", storage.KindUnsupported, "NBD", err)
	}
	return nil
}

const backendPrefix = "storaged/"

// NBDBackend is what the kernel's NBD device of a name says that it is. deploy/udev knows devices by it.
func NBDBackend(name string) string { return backendPrefix + name }

// find returns the index of the connected device of a name. A device that was disconnected while it was in use stays in sysfs until
// its last user has closed it, and answers errors; it does not count. The kernel tells the two apart only when it is asked for a
// change: here it is asked for what it has already.
func (d *NBD) find(name string) (index uint32, found bool) {
	for _, n := range d.listed(name) {
		probe := d.order(name)
		probe.index, probe.hasIndex = n, true
		if _, err := d.kernel.do(nbdCmdReconfigure, probe); !errors.Is(err, unix.EINVAL) { // any other answer leaves it in doubt
			return n, true
		}
	}
	return 0, false
}

// listed returns the indices of the devices of a name that sysfs shows.
func (d *NBD) listed(name string) (list []uint32) {
	entries, _ := filepath.Glob(filepath.Join(d.sysfs, "block/nbd*"))
	for _, e := range entries {
		if blockdev.NBDBackend(e) != backendPrefix+name {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(e), "nbd"), 10, 32); err == nil {
			list = append(list, uint32(n))
		}
	}
	return list
}

// Left reports whether there is a device of a name, which somebody may have open.
func (d *NBD) Left(r Request) bool {
	_, found := d.find(r.Name)
	return found
}

func pathOf(index uint32) string { return "/dev/nbd" + strconv.FormatUint(uint64(index), 10) }

// Attach implements Driver.
func (d *NBD) Attach(ctx context.Context, r Request) (Device, error) {
	if err := d.Detach(ctx, r); err != nil {
		return nil, err
	}
	dev, err := d.connect(ctx, r)
	if err != nil {
		return nil, errors.Join(err, d.Detach(ctx, r))
	}
	if err := ensureNode(dev.Path()); err != nil {
		dev.Stop(ctx)
		return nil, errors.Join(storage.E("attach", storage.KindIO, "device "+r.Name, err), d.Detach(ctx, r))
	}
	return dev, nil
}

// connect has the kernel make a device, and serves it.
func (d *NBD) connect(ctx context.Context, r Request) (*nbdDevice, error) {
	dev, err := d.newDevice(r)
	if err != nil {
		return nil, err
	}
	order := d.order(r.Name)
	order.blockBytes = BlockSize
	end, err := dev.pair(ctx)
	if err != nil {
		dev.Stop(ctx)
		return nil, err
	}
	defer func() { _ = end.file.Close() }() // the kernel holds its own
	order.sizeBytes, order.serverFlags = end.info.SizeBytes, uint64(end.flags)
	order.sockets = []uint32{uint32(end.file.Fd())}
	end.handed.Store(true)
	d.connecting.Lock()
	index, err := d.kernel.do(nbdCmdConnect, order)
	d.connecting.Unlock()
	if err != nil {
		_ = end.file.Close()
		dev.Stop(ctx)
		return nil, storage.E("attach", storage.KindIO, "device "+r.Name, err)
	}
	dev.begin(index)
	return dev, nil
}

// Resume implements Driver.
func (d *NBD) Resume(ctx context.Context, r Request) (Device, error) {
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	index, found := d.find(r.Name)
	if !found {
		return nil, storage.E("resume", storage.KindNotFound, "device "+r.Name, nil)
	}
	dev, err := d.newDevice(r)
	if err != nil {
		return nil, err
	}
	dev.index = index
	err = dev.setClosing(false) // an earlier process may have been killed in the middle of a detach (letGo)
	if err == nil {
		err = dev.replace(ctx, index)
	}
	if err != nil {
		dev.Stop(ctx)
		kind := storage.KindIO
		if _, found := d.find(r.Name); !found { // that detach has come to its end just now
			kind = storage.KindNotFound
		}
		return nil, storage.E("resume", kind, "device "+r.Name, err)
	}
	dev.begin(index)
	return dev, nil
}

// order returns what is the same in all orders about a device.
func (d *NBD) order(name string) nbdOrder {
	return nbdOrder{dead: d.config.DeadTimeout, backend: backendPrefix + name}
}

// Detach implements Driver.
func (d *NBD) Detach(ctx context.Context, r Request) error {
	name := r.Name
	if err := checkName(name); err != nil {
		return err
	}
	for {
		index, found := d.find(name)
		if !found {
			_ = os.Remove(d.config.turnFile(name)) // not there, most often; whoever waits for it finds that the device is gone
			return nil
		}
		endRetries(pathOf(index))
		_, err := d.kernel.do(nbdCmdDisconnect, nbdOrder{index: index, hasIndex: true})
		d.giveBack(index)
		if err == nil {
			err = clock.Sleep(ctx, 10*time.Millisecond)
		}
		if err != nil {
			return storage.E("detach", storage.KindIO, "device "+pathOf(index), err)
		}
	}
}

// kernelEnd is the kernel's end of a connection, negotiated.
type kernelEnd struct {
	file   *os.File
	info   nbd.ExportInfo
	flags  uint16
	handed *atomic.Bool // the kernel has it: when it ends, it is replaced
}

// usualTimeout is the io_timeout of queues that nobody has changed.
const usualTimeout = 30 * time.Second

func (d *NBD) timeoutFile(index uint32) string {
	return filepath.Join(d.sysfs, "block", filepath.Base(pathOf(index)), "queue/io_timeout")
}

// giveBack leaves the queue of a device that is not connected any more as others expect it: the kernel gives its index to
// the next who asks, and would drop the connections of whoever has several as soon as an answer takes ResendAfter.
func (d *NBD) giveBack(index uint32) {
	d.connecting.Lock()
	defer d.connecting.Unlock()
	if _, err := os.Stat(filepath.Join(d.sysfs, "block", filepath.Base(pathOf(index)), "pid")); err != nil {
		_ = setTimeout(d.timeoutFile(index), usualTimeout) // the device itself may be gone
	}
}

// setTimeout writes a queue's io_timeout, if it is another. Some kernels wait for the queue's requests meanwhile.
func setTimeout(file string, timeout time.Duration) error {
	want := strconv.FormatInt(timeout.Milliseconds(), 10)
	if was, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(was)) == want {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0) // it is never made
	if err != nil {
		return err
	}
	_, err = f.WriteString(want + "\n")
	return errors.Join(err, f.Close())
}

// setPace has the kernel look at unanswered requests every ResendAfter. It is called when the device is served.
func (v *nbdDevice) setPace() {
	ctx, cancel := context.WithTimeout(v.ctx, helpTimeout)
	defer cancel()
	config := v.driver.config
	_, err := config.help(ctx, "io-timeout", v.driver.timeoutFile(v.index), config.ResendAfter.String())
	if err != nil && v.ctx.Err() == nil {
		config.Logger.Warn("after a gateway is killed, requests may wait for half a minute: the queue's time-out is not set",
			"device", v.Path(), "error", err)
	}
}

// nbdDevice is a device of NBD. It implements Device.
type nbdDevice struct {
	driver *NBD
	name   string
	server *nbd.Server
	index  uint32 // set by begin

	ctx    context.Context // ends with Stop; connections are drained then
	cancel context.CancelFunc
	wg     sync.WaitGroup
	lost   chan struct{} // a token for each connection that has ended; capacity is more than there can be
	ended  chan struct{}
	end    func() // closes ended
}

func (d *NBD) newDevice(r Request) (*nbdDevice, error) {
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	dev := &nbdDevice{driver: d, name: r.Name, lost: make(chan struct{}, 2), ended: make(chan struct{})}
	dev.end = sync.OnceFunc(func() { close(dev.ended) })
	dev.ctx, dev.cancel = context.WithCancel(context.Background())
	var err error
	dev.server, err = nbd.NewServer(nbd.Config{Backend: oneExport{r}, Logger: d.config.Logger, Budget: d.budget, StallTimeout: d.config.DeadTimeout})
	return dev, err
}

// oneExport is the backend of a device's connections.
type oneExport struct{ request Request }

// Exports implements nbd.Backend.
func (b oneExport) Exports(context.Context) ([]nbd.ExportInfo, error) { return nil, nil }

// Stat implements nbd.Backend.
func (b oneExport) Stat(context.Context, string, nbd.Peer) (nbd.ExportInfo, error) {
	return nbd.ExportInfo{}, storage.E("describe", storage.KindUnsupported, "device "+b.request.Name, nil)
}

// Open implements nbd.Backend.
func (b oneExport) Open(ctx context.Context, _ string, _ nbd.Peer) (nbd.Export, error) {
	return openDevice(ctx, b.request)
}

// pair makes a connection and returns the kernel's end; the other is being served.
func (v *nbdDevice) pair(ctx context.Context) (*kernelEnd, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, storage.E("connect", storage.KindIO, "device "+v.name, os.NewSyscallError("socketpair", err))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "nbd"), os.NewFile(uintptr(fds[1]), "nbd kernel")
	served, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, err
	}
	handed := new(atomic.Bool)
	v.wg.Go(func() {
		_ = v.server.ServeConn(v.ctx, served) // it logs how it ended
		if !handed.Load() {
			return
		}
		select {
		case v.lost <- struct{}{}:
		default: // nobody replaces any more
		}
	})
	negotiating, err := net.FileConn(theirs)
	if err == nil {
		end := &kernelEnd{file: theirs, handed: handed}
		end.info, end.flags, err = nbdclient.Negotiate(ctx, negotiating, v.name)
		_ = negotiating.Close()
		if err == nil {
			return end, blocking(fds[1])
		}
	}
	_ = theirs.Close()
	return nil, err
}

// sendPatience is how long the kernel may wait to send to a gateway that does not read before it gives the connection up:
// nothing else ends such a wait, not even that the device is removed.
const sendPatience = 10 * time.Second

// blocking makes the kernel's end as the kernel expects it.
func blocking(fd int) error {
	patience := unix.NsecToTimeval(sendPatience.Nanoseconds())
	return errors.Join(unix.SetNonblock(fd, false), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience))
}

// replace gives the kernel a new connection in the place of one that has ended. That it has ended is known here first.
func (v *nbdDevice) replace(ctx context.Context, index uint32) error {
	end, err := v.pair(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = end.file.Close() }()
	order := v.driver.order(v.name)
	order.index, order.hasIndex, order.sockets = index, true, []uint32{uint32(end.file.Fd())}
	end.handed.Store(true) // before the kernel has it: it may end at once, and would not be replaced
	for deadline := time.Now().Add(netlinkTimeout); ; {
		_, err := v.driver.kernel.do(nbdCmdReconfigure, order)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.ENOSPC) || time.Now().After(deadline): // no connection counts as dead yet
			end.handed.Store(false)
			return err
		}
		if err := clock.Sleep(ctx, 20*time.Millisecond); err != nil {
			end.handed.Store(false)
			return err
		}
	}
}

// begin keeps the device connected from now on.
func (v *nbdDevice) begin(index uint32) {
	v.index = index
	v.wg.Go(v.setPace)
	v.wg.Go(func() {
		for v.keepConnected() {
		}
	})
}

// keepConnected replaces one connection that has ended, as often as it takes; false when the device is gone, or is not served
// here any more.
func (v *nbdDevice) keepConnected() bool {
	select {
	case <-v.ctx.Done():
		return false
	case <-v.lost:
	}
	for failures := 1; v.ctx.Err() == nil; failures++ {
		if now, found := v.driver.find(v.name); !found || now != v.index {
			v.end()
			return false
		}
		err := v.replace(v.ctx, v.index)
		if err == nil {
			return true
		}
		if v.ctx.Err() == nil {
			v.driver.config.Logger.Warn("a device's connection is not replaced; tried again", "device", v.Path(), "error", err)
		}
		_ = clock.Sleep(v.ctx, min(time.Duration(failures)*100*time.Millisecond, 5*time.Second)) // its error is the context's
	}
	return false
}

// Path implements Device.
func (v *nbdDevice) Path() string { return pathOf(v.index) }

// Identity implements Device.
func (v *nbdDevice) Identity() blockdev.Identity {
	return blockdev.Identity{Backend: backendPrefix + v.name, Sequence: blockdev.Sequence(v.Path())}
}

// Check implements Device.
func (v *nbdDevice) Check() error {
	if blockdev.NBDBackend(filepath.Join(v.driver.sysfs, "block", filepath.Base(v.Path()))) == backendPrefix+v.name {
		return nil
	}
	return storage.E("look at", storage.KindConflict, "device "+v.Path(), errors.New("the device was disconnected from the volume (nbd-client -d), and may be another's by now"))
}

// Settle implements Device. Nothing else shows.
func (v *nbdDevice) Settle() error { return nil }

// SizeBytes implements Device.
func (v *nbdDevice) SizeBytes() int64 { return deviceBytes(v.Path()) }

// Ended implements Device.
func (v *nbdDevice) Ended() <-chan struct{} { return v.ended }

// Resize implements Device.
func (v *nbdDevice) Resize(ctx context.Context) error {
	end, err := v.pair(ctx) // an export says how large it is when it is opened
	if err != nil {
		return err
	}
	_ = end.file.Close()
	order := v.driver.order(v.name)
	order.index, order.hasIndex, order.sizeBytes, order.blockBytes = v.index, true, end.info.SizeBytes, BlockSize
	if _, err := v.driver.kernel.do(nbdCmdReconfigure, order); err != nil {
		return storage.E("resize", storage.KindIO, "device "+v.Path(), err)
	}
	return nil
}

// Sync implements Device.
func (v *nbdDevice) Sync(ctx context.Context) error {
	return v.driver.config.helpInTurn(ctx, v.name, "device-sync", v.Path())
}

// Unmount implements Device.
func (v *nbdDevice) Unmount(ctx context.Context, lazy bool) error {
	if err := v.Check(); err != nil {
		return err
	}
	return v.driver.config.unmount(ctx, v.name, v.Path(), lazy)
}

// Detach implements Device.
func (v *nbdDevice) Detach(ctx context.Context, force bool) error {
	if !force {
		if err := v.letGo(ctx); err != nil {
			return notLetGo(v.Path(), err)
		}
	}
	if err := v.driver.Detach(ctx, Request{Name: v.name}); err != nil {
		return err
	}
	v.end()
	v.Stop(ctx)
	return nil
}

// closePatience is how long a device may be open still after it was let go: udev looks at what was closed.
const closePatience = 2 * time.Second

// letGo writes out what the kernel holds for the device, and has the kernel remove it if nobody has it open: errBusy if
// somebody does, and then it stays. To look first and to remove it then would cut off whoever opens it in between, and
// everybody who opens it without saying that nobody else may.
func (v *nbdDevice) letGo(ctx context.Context) error {
	if err := v.setClosing(true); err != nil {
		if _, found := v.driver.find(v.name); !found {
			return nil // somebody else has removed it, and the watch over it has not seen it yet
		}
		return storage.E("detach", storage.KindIO, "device "+v.Path(), err)
	}
	helping, cancel := context.WithTimeout(ctx, helpTimeout)
	defer cancel()
	err := v.driver.config.helpInTurn(helping, v.name, "block-sync", v.Path()) // the last to close it, if nobody has it open
	for deadline := time.Now().Add(closePatience); err == nil; err = clock.Sleep(ctx, 20*time.Millisecond) {
		if !slices.Contains(v.driver.listed(v.name), v.index) {
			v.driver.giveBack(v.index)
			return nil
		}
		if time.Now().After(deadline) {
			err = errBusy
			break
		}
	}
	if undo := v.setClosing(false); undo != nil {
		if _, found := v.driver.find(v.name); !found {
			return nil // its last user has just gone
		}
		v.driver.config.Logger.Warn("the device goes when its last user closes it", "device", v.Path(), "error", undo)
	}
	return err
}

func (v *nbdDevice) setClosing(closing bool) error {
	order := v.driver.order(v.name)
	order.index, order.hasIndex, order.hasClosing, order.closing = v.index, true, true, closing
	_, err := v.driver.kernel.do(nbdCmdReconfigure, order)
	return err
}

// Stop implements Device. What the server does not answer within its drain time-out waits in the kernel.
func (v *nbdDevice) Stop(context.Context) {
	v.cancel()
	v.wg.Wait()
}
