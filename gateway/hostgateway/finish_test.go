package hostgateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/host"
)

// away is a cluster that can be out of reach.
type away struct {
	*apitest.Cluster
	client *client.Client
	is     atomic.Bool
}

func newAway(t *testing.T) *away {
	t.Helper()
	a := &away{Cluster: apitest.New(time.Now)}
	server, err := api.NewServer(api.Config{Cluster: a})
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(64 << 10)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	a.client, err = client.New(client.Config{Endpoints: []string{"a"}, Patience: time.Second, AttemptTimeout: 200 * time.Millisecond,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			if a.is.Load() {
				return nil, errors.New("no route to host")
			}
			return l.DialContext(ctx)
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.client.Close()
		cancel()
		running.Wait()
	})
	return a
}

// attached returns a gateway with a volume attached, which the cluster knows of.
func (a *away) attached(t *testing.T) (*Gateway, *holding, *fakeDriver) {
	t.Helper()
	driver := &fakeDriver{}
	g := newTestGateway(t, driver)
	g.api = a.client
	v, err := a.CreateVolume(t.Context(), api.NewVolume{Name: "v", SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	at, err := a.Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{Name: "v"}, Access: storage.AccessExclusive,
		Holder: storage.Holder{ID: g.hostID, Kind: storage.HolderHost, Host: "h"}})
	if err != nil {
		t.Fatal(err)
	}
	device := newFakeDevice()
	h := g.put(t, record{Volume: "v", VolumeID: v.ID, Attachment: at.ID, Own: true, Access: storage.AccessExclusive, Via: host.ViaNBD, Device: device.Path()})
	h.device, h.state = device, host.StateReady
	g.link("v", device.Path(), 0)
	t.Cleanup(func() {
		g.unresume()
		g.resumed.Wait()
	})
	return g, h, driver
}

// awaitGone waits until the gateway has forgotten the volume, or for long.
func (g *Gateway) awaitGone(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); g.holding("v") != nil && time.Now().Before(deadline); {
		<-time.After(10 * time.Millisecond)
	}
}

func (a *away) holders(t *testing.T) int {
	t.Helper()
	list, err := a.Attachments(t.Context(), api.AttachmentFilter{}, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A volume that is detached while the cluster is away has no device from then on, and no link: the path is the next one's. The
// cluster is told when it is back, without anybody's doing. The lines are noteRemoved and finishLater in Detach.
func TestDetachedWhileTheClusterIsAway(t *testing.T) {
	a := newAway(t)
	g, h, _ := a.attached(t)
	a.is.Store(true)
	err := g.Detach(t.Context(), "v", false)
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "its device is removed") {
		t.Errorf("a detach that the cluster does not hear of is answered %v", err)
	}
	if s := h.describe(); s.State != host.StateDetaching || s.Device != "" || s.Link != "" {
		t.Errorf("afterwards it is %+v; want it detaching, and no device", s)
	}
	if _, err := os.Lstat(filepath.Join(g.config.LinkDir, "v")); !os.IsNotExist(err) {
		t.Errorf("the link is left: %v", err)
	}
	a.is.Store(false)
	g.awaitGone(t)
	if g.holding("v") != nil || a.holders(t) != 0 {
		t.Errorf("the cluster is back: the holding is %v, and %d hold the volume", g.holding("v"), a.holders(t))
	}
}

// A gateway that is killed after it removed a device, and before the cluster knew, does not make the device again: the removal
// is written down before any step that may take long. The line is noteGone in Detach.
func TestDetachedAndKilled(t *testing.T) {
	a := newAway(t)
	g, h, driver := a.attached(t)
	a.is.Store(true)
	var killed []record
	h.device.(*fakeDevice).stop = func() {
		var err error
		if killed, err = g.state.records(); err != nil {
			t.Error(err)
		}
	}
	h.finishing = true // this one does nothing more
	if g.Detach(t.Context(), "v", true) == nil || len(killed) != 1 {
		t.Fatalf("detached without the cluster, or these are its records: %v", killed)
	}
	a.is.Store(false)
	next := newTestGateway(t, driver)
	next.api, next.state, next.hostID = g.api, g.state, g.hostID
	next.put(t, killed[0])
	t.Cleanup(func() {
		next.unresume()
		next.resumed.Wait()
	})
	finished := make(chan struct{})
	go func() { defer close(finished); next.resume("v") }() // or what it leaves to be done in the background
	next.awaitGone(t)
	next.unresume()
	<-finished
	if len(driver.attached) > 0 || next.holding("v") != nil || a.holders(t) != 0 {
		t.Errorf("the next gateway has attached %v, keeps %v, and %d hold the volume", driver.attached, next.holding("v"), a.holders(t))
	}
}

// An attach that failed while the cluster was away is no obstacle to the next one. The line is the one in Attach that asks gone.
func TestAttachAfterOneThatFailed(t *testing.T) {
	a := newAway(t)
	g, h, driver := a.attached(t)
	h.device = nil
	h.record.Device = ""
	h.finishing = true // nobody does it in the background
	a.is.Store(true)
	if err := g.undo(h); err == nil {
		t.Fatal("undone without the cluster")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := g.Attach(ctx, host.Request{Volume: "v", Access: storage.AccessExclusive, Via: host.ViaNBD})
	if err == nil || errors.Is(err, storage.ErrConflict) {
		t.Errorf("while the cluster is away it is answered %v", err)
	}
	a.is.Store(false)
	for deadline := time.Now().Add(10 * time.Second); a.holders(t) != 0 && time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // it would wait for the way to the volume, which this test has not
		_, err = g.Attach(ctx, host.Request{Volume: "v", Access: storage.AccessExclusive, Via: host.ViaNBD})
		cancel()
	}
	if a.holders(t) != 0 || g.holding("v") != nil || len(driver.detached) == 0 {
		t.Errorf("answered %v; %d hold the volume, taken apart: %v", err, a.holders(t), driver.detached)
	}
}

// What is left of a device that cannot be removed is not said to be removed: its users may write to it still.
func TestDeviceThatStaysIsNotSaidToBeGone(t *testing.T) {
	a := newAway(t)
	g, h, driver := a.attached(t)
	h.device, h.record.Gone = nil, true // a detach before this one was cut short
	h.finishing = true                  // nobody does it in the background
	driver.fails(errors.New("the kernel says no"))
	err := g.Detach(t.Context(), "v", true)
	for _, said := range []string{fmt.Sprint(err), h.describe().Reason} {
		if !strings.Contains(said, "not removed yet") || !strings.Contains(said, "the kernel says no") || strings.Contains(said, "is removed") {
			t.Errorf("a device that is there is spoken of as %q", said)
		}
	}
	driver.fails(nil)
	if err := g.Detach(t.Context(), "v", true); err != nil || a.holders(t) != 0 {
		t.Errorf("when it can be removed: %v, and %d hold the volume", err, a.holders(t))
	}
}
