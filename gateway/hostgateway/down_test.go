package hostgateway

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/nbd/attach"
)

// goingDown is a gateway whose host goes down.
func goingDown(t *testing.T, driver attach.Driver) *Gateway {
	g := newTestGateway(t, driver)
	g.config.HostDownTimeout, g.config.ShutdownTimeout = 30*time.Second, 10*time.Second
	return g
}

func (d *fakeDriver) names(list *[]string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(*list)
}

// A gateway that stops because its host goes down leaves no device behind. It waits for whoever is unmounting. For users that do
// not let go, it first writes out all dirty data. The lines are those in part.
func TestHostDownTakesDevicesApart(t *testing.T) {
	for name, tc := range map[string]struct {
		used           time.Duration // for how long the device is in use
		broken         error         // what a detach ends with that is not by force
		synced, forced bool
	}{
		"not in use":          {},
		"unmounted meanwhile": {used: 3 * time.Second},
		"in use to the end":   {used: time.Hour, synced: true, forced: true},
		"answers errors":      {broken: storage.E("sync", storage.KindIO, "device", errors.New("input/output error")), synced: true, forced: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := goingDown(t, &fakeDriver{})
				h := g.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD, Device: "/dev/fake0"})
				device := newFakeDevice()
				var unused, forced atomic.Bool
				begun := time.Now()
				device.detach = func(_ context.Context, force bool) error {
					switch {
					case force:
						forced.Store(true)
					case tc.broken != nil:
						return tc.broken
					case time.Since(begun) < tc.used:
						return storage.E("detach", storage.KindConflict, "device", errors.New("in use"))
					default:
						unused.Store(true)
					}
					return nil
				}
				h.device, h.state = device, host.StateReady
				if err := g.HostDown(t.Context()); err != nil {
					t.Fatal(err)
				}
				g.leave()
				if forced.Load() != tc.forced || unused.Load() == tc.forced || device.synced.Load() != tc.synced || device.hidden.Load() != tc.forced || tc.used > 0 && device.unmounts.Load() == 0 {
					t.Errorf("by force: %t, written out: %t; want %t, %t", forced.Load(), device.synced.Load(), tc.forced, tc.synced)
				}
				if took := time.Since(begun); took > g.config.ShutdownTimeout+time.Second {
					t.Errorf("that took %v", took)
				}
				if list, err := g.state.records(); err != nil || len(list) != 1 || list[0].Gone {
					t.Errorf("what is attached is not attached again: %+v, %v", list, err)
				}
			})
		})
	}
}

// An earlier gateway has left a device, and this one does not serve it because it has not reached the cluster. The device is
// removed after the time that the cluster is given, and is not made again when the cluster is reached later. Nothing else is
// attached either. The lines are those in endUnserved, and the one in resume that looks at parted.
func TestHostDownWithoutCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		driver := &fakeDriver{}
		g := goingDown(t, driver)
		h := g.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD, Device: "/dev/fake0"})
		g.resumed.Go(func() { g.resume("v") }) // waits for the cluster
		for range 2 {
			if err := g.HostDown(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(g.config.HostDownTimeout - time.Second)
		if got := driver.names(&driver.detached); len(got) != 0 {
			t.Errorf("taken apart before its time: %v", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := driver.names(&driver.detached); len(got) != 1 || !h.parted {
			t.Errorf("taken apart: %v", got)
		}
		g.resume("v")
		if got := driver.names(&driver.attached); len(got) != 0 {
			t.Errorf("made anew: %v", got)
		}
		if err := g.add(&holding{gateway: g, record: record{Volume: "w"}}); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("attached while the host goes down: %v", err)
		}
	})
}
