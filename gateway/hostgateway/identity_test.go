package hostgateway

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
)

// Somebody has freed a device, so its path may be another's: it is not the volume's device any more. Whoever asks is told
// so, whether or not the watch has noticed, gets no path, and finds no link. The lines are the calls of verify in Attach,
// Attachments, Refresh and watchUntil.
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
			return errors.New(g.holding("v").describe().Reason)
		},
	}
	for name, ask := range asks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newTestGateway(t, &fakeDriver{})
				h := g.put(t, record{Volume: "v", VolumeID: 3, Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaNBD})
				device := newFakeDevice()
				if err := h.ready(device); err != nil {
					t.Fatal(err)
				}
				if a := h.describe(); a.Identity != device.Identity() || a.Device != device.Path() {
					t.Errorf("it is described as %+v", a)
				}
				device.another.Store(true)
				if err := ask(t, g); err == nil || !strings.Contains(err.Error(), "another's") {
					t.Errorf("nothing was said: %v", err)
				}
				if err := ask(t, g); err == nil || strings.Contains(err.Error(), "device  ") {
					t.Errorf("the device has no path, and %q is said", err)
				}
				if a := h.describe(); a.State != host.StateFailed || a.Device != "" || a.Link != "" || !a.Identity.IsZero() {
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

// A gateway that is started again on its machine is the same machine; a copy of its state directory is not.
func TestMachine(t *testing.T) {
	dir := t.TempDir()
	machine := func(dir string) string {
		t.Helper()
		st, err := openState(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = st.close() }()
		m, err := st.machine()
		if err != nil || len(m) > 64 {
			t.Fatalf("machine %q: %v", m, err)
		}
		return string(m)
	}
	first := machine(dir)
	if again := machine(dir); again != first {
		t.Errorf("started again it is %s, and was %s", again, first)
	}
	copied := t.TempDir()
	if err := os.CopyFS(filepath.Join(copied, "state"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	kept, now, _ := strings.Cut(first, ".")
	keptOfCopy, nowOfCopy, _ := strings.Cut(machine(filepath.Join(copied, "state")), ".")
	if kept != keptOfCopy || now == nowOfCopy {
		t.Errorf("a copy is %s.%s, the original %s.%s; want the same machine at another start", keptOfCopy, nowOfCopy, kept, now)
	}
}
