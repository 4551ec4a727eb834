//go:build e2e && devices

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storaged/storaged/api/host"
)

// TestHostGoesDown: whoever unmounts a file system while the host goes down and the cluster is away gets an error in bounded time; so
// does who unmounts one whose gateway was stopped before. Nothing is left of the device when the gateway has stopped. When the host has
// started, the volume is attached again, and the file system on it is one. The lines are those in hostgateway that call hurry and leave.
func TestHostGoesDown(t *testing.T) {
	c := startWithVolume(t, nil)
	g := startHost(t, c, "host-a", "--host-down-timeout=3s", "--shutdown-timeout=5s")
	a := g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	run(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0", a.Device)
	goesDown := func() {
		t.Helper()
		run(t, slices.Concat([]string{*storagedFlag, "gateway", "host-down"}, g.Args[1:])...)
	}
	unmounted := func(at string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // long before anything else would end it
		defer cancel()
		begun := time.Now()
		if out, err := exec.CommandContext(ctx, "umount", at).CombinedOutput(); err != nil {
			t.Fatalf("after %v: umount: %v\n%s", time.Since(begun), err, out)
		}
		t.Logf("unmounted after %v", time.Since(begun).Round(100*time.Millisecond))
		if left := leftovers(t, g); g.Cmd == nil && left != "" {
			t.Errorf("left behind:\n%s", left)
		}
	}
	hidden := func(at string) {
		t.Helper()
		if text, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(text), at+" ") {
			t.Errorf("%s is mounted still (%v)", at, err)
		}
	}
	for name, down := range map[string]func(at string){
		"the cluster is away": func(at string) {
			for _, n := range c.Nodes() {
				if err := n.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			goesDown()
			unmounted(at)
			g.End(t, syscall.SIGTERM)
			for i := range c.Nodes() {
				if err := c.LaunchNode(i); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := c.WaitFull(ctx); err != nil {
				t.Fatal(err)
			}
		},
		"the gateway was stopped": func(at string) {
			g.End(t, syscall.SIGTERM)
			goesDown()
			unmounted(at)
		},
		"mounted still": func(at string) {
			goesDown()
			g.End(t, syscall.SIGTERM)
			hidden(at)
		},
		"in use to the end": func(at string) {
			f, err := os.Create(filepath.Join(at, "open"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			goesDown()
			g.End(t, syscall.SIGTERM)
			hidden(at)
			if _, err := f.Write([]byte("late")); err == nil {
				err = f.Sync()
				if err == nil {
					t.Error("a write to a device that is gone had no error")
				}
			}
		},
	} {
		at := t.TempDir()
		t.Cleanup(func() { _ = exec.Command("umount", "-l", at).Run() }) // unmounted already, unless the test failed
		run(t, "mount", a.Link, at)
		file, want := filepath.Join(at, "file"), bytes.Repeat([]byte(name+"\n"), 1<<17)
		if err := os.WriteFile(file, want, 0o600); err != nil { // and nobody syncs it
			t.Fatal(err)
		}
		down(at)
		if left := leftovers(t, g); left != "" {
			t.Errorf("%s: left behind:\n%s", name, left)
		}
		g.Start(t)
		awaitText(t, "attachments", func() string {
			list, err := g.Attachments(t.Context())
			return fmt.Sprintf("%+v %v", list, err)
		}, func(text string) bool { return strings.Contains(text, string(host.StateReady)) })
		var exit *exec.ExitError
		if out, err := exec.Command("e2fsck", "-fy", a.Link).CombinedOutput(); err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
			t.Errorf("%s: e2fsck: %v\n%s", name, err, out)
		}
		if name == "in use to the end" || name == "mounted still" { // what was written was written out before the device was taken away
			run(t, "mount", a.Link, at)
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d of %d bytes are read back: %v", name, len(got), len(want), err)
			}
			run(t, "umount", at)
		}
	}
}
