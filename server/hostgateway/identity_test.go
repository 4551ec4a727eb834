package hostgateway

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
)

// A device that somebody has freed, so that its path may be another's, is no device of the volume any more: whoever asks is
// told so, whether or not the watch has noticed, is given no path, and finds no link. The lines are the calls of verify in
// Attach, Attachments, Refresh and watchUntil.
func TestDeviceOfAnother(t *testing.T) {
	asks := map[string]func(*testing.T, *Gateway) error{
		"attach again": func(t *testing.T, g *Gateway) error {
			_, err := g.Attach(t.Context(), host.Request{Volume: "v"})
			if !errors.Is(err, storage.ErrConflict) {
				t.Errorf("attach: %v, want KindConflict", err)
			}
			return err
		},
		"list": func(t *testing.T, g *Gateway) error {
			list, _ := g.Attachments(t.Context())
			return errors.New(list[0].Reason)
		},
		"watch": func(t *testing.T, g *Gateway) error {
			time.Sleep(2 * watchInterval) // virtual
			return errors.New(g.disk("v").describe().Reason)
		},
	}
	for name, ask := range asks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newTestGateway(t, &fakeDriver{})
				d := g.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: host.AccessExclusive, Via: host.ViaNBD})
				device := newFakeDevice()
				if err := d.ready(device); err != nil {
					t.Fatal(err)
				}
				if a := d.describe(); a.Identity != device.Identity() || a.Device != device.Path() {
					t.Errorf("it is described as %+v", a)
				}
				device.another.Store(true)
				if err := ask(t, g); err == nil || !strings.Contains(err.Error(), "another's") {
					t.Errorf("nothing was said: %v", err)
				}
				if a := d.describe(); a.State != host.StateFailed || a.Device != "" || a.Link != "" || !a.Identity.IsZero() {
					t.Errorf("it is described as %+v", a)
				}
				if _, err := os.Lstat(g.linkOf("v")); !os.IsNotExist(err) {
					t.Errorf("the link is left: %v", err)
				}
				if err := g.Detach(t.Context(), "v", true); err != nil {
					t.Logf("detach: %v", err) // there is no cluster to tell
				}
			})
		})
	}
}
