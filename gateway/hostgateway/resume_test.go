package hostgateway

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/nbd/attach"
)

// fakeDriver makes devices of nothing. It implements attach.Driver.
type fakeDriver struct {
	mu       sync.Mutex
	attached []string // names that Attach or Resume was called with; guarded by mu, as detached
	detached []string
	failure  error // of Detach; nil: it succeeds
}

func (d *fakeDriver) fails(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = err
}

func (d *fakeDriver) Available() error { return nil }

func (d *fakeDriver) Attach(_ context.Context, r attach.Request) (attach.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached = append(d.attached, r.Name)
	return newFakeDevice(), nil
}

func (d *fakeDriver) Resume(_ context.Context, r attach.Request) (attach.Device, error) {
	return nil, storage.E("resume", storage.KindNotFound, "device "+r.Name, nil)
}

func (d *fakeDriver) Detach(_ context.Context, r attach.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.detached = append(d.detached, r.Name)
	return d.failure
}

// fakeDevice is a device that nobody reads or writes. It implements attach.Device.
type fakeDevice struct {
	ended   chan struct{}
	detach  func(ctx context.Context, force bool) error // nil: it succeeds
	another atomic.Bool                                 // somebody else has the path now
	stop    func()                                      // nil: nothing
	settled atomic.Bool
	synced  atomic.Bool
	// unmounts counts attempts to unmount what is on it, all in vain; hidden: and then it was done lazily.
	unmounts atomic.Int64
	hidden   atomic.Bool
}

func newFakeDevice() *fakeDevice { return &fakeDevice{ended: make(chan struct{})} }

func (d *fakeDevice) Path() string                 { return "/dev/fake0" }
func (d *fakeDevice) SizeBytes() int64             { return 1 << 20 }
func (d *fakeDevice) Resize(context.Context) error { return nil }
func (d *fakeDevice) Unmount(_ context.Context, lazy bool) error {
	if lazy {
		d.hidden.Store(true)
		return nil
	}
	d.unmounts.Add(1)
	return storage.E("unmount", storage.KindConflict, "device", errors.New("in use"))
}
func (d *fakeDevice) Sync(context.Context) error { d.synced.Store(true); return nil }
func (d *fakeDevice) Settle() error              { d.settled.Store(true); return nil }
func (d *fakeDevice) Stop(context.Context) {
	if d.stop != nil {
		d.stop()
	}
}
func (d *fakeDevice) Ended() <-chan struct{}      { return d.ended }
func (d *fakeDevice) Identity() blockdev.Identity { return blockdev.Identity{Backend: "fake"} }
func (d *fakeDevice) Check() error {
	if d.another.Load() {
		return storage.E("look at", storage.KindConflict, "device", errors.New("it is another's"))
	}
	return nil
}
func (d *fakeDevice) Detach(ctx context.Context, force bool) error {
	if d.detach == nil {
		return nil
	}
	return d.detach(ctx, force)
}

// newTestGateway returns a gateway that has reached no cluster, over a state directory of the test's own.
func newTestGateway(t *testing.T, driver attach.Driver) *Gateway {
	t.Helper()
	st, err := openState(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.close() })
	g := &Gateway{config: Config{LinkDir: t.TempDir()}, env: environment{logger: slog.New(slog.DiscardHandler)}, state: st, hostID: "h",
		drivers: map[host.Via]attach.Driver{host.ViaNBD: driver}, holdings: map[string]*holding{}, turns: map[string]chan struct{}{},
		reached: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(t.Context())
	g.resuming, g.unresume = context.WithCancel(g.ctx)
	t.Cleanup(func() {
		g.cancel()
		g.wg.Wait()
	})
	return g
}

// put enters a holding as a start of the gateway finds it.
func (g *Gateway) put(t *testing.T, r record) *holding {
	t.Helper()
	if err := g.state.writeRecord(r); err != nil {
		t.Fatal(err)
	}
	h := &holding{gateway: g, record: r, state: host.StateConnecting}
	g.mu.Lock()
	g.holdings[r.Volume] = h
	g.mu.Unlock()
	return h
}

// A gateway that was killed while it asked the cluster about an attachment that the CSI controller had made finds a record
// without the volume's id. It takes the attach back: a device under such a record would be refused as another volume's by
// every later call, and be left behind by the one that gives the volume up. The line is the one in resume that looks at
// VolumeID.
func TestAttachWithoutAnswerIsTakenBack(t *testing.T) {
	for name, r := range map[string]record{
		"named": {Volume: "v", Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD},
		"gone":  {Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD, Gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			driver := &fakeDriver{}
			g := newTestGateway(t, driver)
			g.put(t, r)
			deadline := time.AfterFunc(10*time.Second, g.unresume) // of a resume that waits for the cluster
			defer deadline.Stop()
			g.resume("v")
			if len(driver.attached) > 0 || len(driver.detached) != 1 {
				t.Errorf("attached %v, detached %v; want what was begun taken apart, and nothing made", driver.attached, driver.detached)
			}
			if h := g.holding("v"); h != nil {
				t.Errorf("the volume is still held: %+v", h.describe())
			}
			if _, err := os.Stat(g.state.recordPath("v")); !os.IsNotExist(err) {
				t.Errorf("the record is left: %v", err)
			}
		})
	}
}

// A device that a start of the gateway finds while no node answers is resumed for as long as that takes; detaching it by
// force does not wait for it. The line is the one in Detach that calls endResume: without it the detach ends with its
// deadline, and the device, whose users all wait, cannot be removed.
func TestForcedDetachEndsResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		driver := &fakeDriver{}
		g := newTestGateway(t, driver)
		h := g.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD})
		var wg sync.WaitGroup
		wg.Go(func() { g.resume("v") })
		synctest.Wait() // it waits for the cluster
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.Detach(ctx, "v", true); err != nil {
			t.Errorf("detach: %v", err)
		}
		g.unresume()
		wg.Wait()
		if g.holding("v") != nil || len(driver.detached) != 1 {
			t.Errorf("the volume is %+v; the driver has detached %v", h.describe(), driver.detached)
		}
	})
}

// A device that fails while it is to be detached, and is not, has failed afterwards: nothing watches over it any more. The
// line is the one in keep that looks at lost.
func TestFailureDuringDetachIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGateway(t, &fakeDriver{})
		h := g.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD})
		device := newFakeDevice()
		device.detach = func(context.Context, bool) error {
			close(device.ended)
			<-h.watched
			return storage.E("detach", storage.KindIO, "device", errors.New("a fault of the test"))
		}
		if err := h.ready(device); err != nil {
			t.Fatal(err)
		}
		if err := g.Detach(t.Context(), "v", false); !errors.Is(err, storage.ErrIO) {
			t.Errorf("detach: %v", err)
		}
		if a := h.describe(); a.State != host.StateFailed || a.Reason == "" {
			t.Errorf("the device is gone, and is called %s (%s)", a.State, a.Reason)
		}
	})
}

// The state directory is known by its real path. Mounts in it are looked up in the kernel's table of mounts, which shows only
// real paths, and the path of the keeper's socket is given to a process with another working directory.
func TestStateDirectoryIsReal(t *testing.T) {
	parent, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(parent)
	if err := os.Symlink("real", "link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("real", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"link", filepath.Join(parent, "link"), "real/."} {
		st, err := openState(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(parent, "real", "mnt"); st.mountDir() != want {
			t.Errorf("%s: devices are mounted in %s, want %s", dir, st.mountDir(), want)
		}
		if err := st.close(); err != nil {
			t.Error(err)
		}
	}
}

// A device that was lost is made again if nobody was told of it. If somebody was, it is left to a forced detach, because its
// users must learn of the loss. Line: makeAnew.
func TestHalfMadeDeviceIsMadeAnew(t *testing.T) {
	lost := storage.E("resume", storage.KindIO, "device v", errors.New("the connection was lost"))
	for _, c := range []struct {
		name string
		r    record
		err  error
		want bool
	}{
		{"resumed", record{Device: "/dev/loop0"}, nil, false},
		{"resumed, though nobody was told", record{}, nil, false},
		{"the host has started", record{Device: "/dev/loop0"}, storage.E("resume", storage.KindNotFound, "device v", nil), true},
		{"lost", record{Device: "/dev/loop0"}, lost, false},
		{"lost while it was made", record{}, lost, true},
	} {
		if got := makeAnew(c.r, c.err); got != c.want {
			t.Errorf("%s: made anew: %v", c.name, got)
		}
	}
}
