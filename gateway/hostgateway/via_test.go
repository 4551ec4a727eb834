package hostgateway

import (
	"errors"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/nbd/attach"
)

// absentDriver is one that this kernel lacks.
type absentDriver struct {
	fakeDriver
	why string
}

func (d *absentDriver) Available() error {
	return storage.E("attach by", storage.KindUnsupported, d.why, errors.New("as root: modprobe "+d.why))
}

// TestWhichDriver: a caller that names no driver gets the kernel's NBD where it exists, and FUSE elsewhere; one that names a driver
// gets that or an error. A host that has neither is told what both lack.
func TestWhichDriver(t *testing.T) {
	there := func() attach.Driver { return &fakeDriver{} }
	no := func(what string) attach.Driver { return &absentDriver{why: what} }
	for _, tc := range []struct {
		name      string
		nbd, fuse attach.Driver
		asked     host.Via
		got       host.Via // "": none
		says      []string
	}{
		{"both", there(), there(), host.ViaAuto, host.ViaNBD, nil},
		{"no nbd", no("nbd"), there(), host.ViaAuto, host.ViaFUSE, nil},
		{"no FUSE", there(), no("fuse"), host.ViaAuto, host.ViaNBD, nil},
		{"neither", no("nbd"), no("fuse"), host.ViaAuto, "", []string{"modprobe nbd", "modprobe fuse"}},
		{"FUSE is asked for", there(), there(), host.ViaFUSE, host.ViaFUSE, nil},
		{"nbd is asked for and is not there", no("nbd"), there(), host.ViaNBD, "", []string{"modprobe nbd"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newTestGateway(t, nil)
			g.drivers = map[host.Via]attach.Driver{host.ViaNBD: tc.nbd, host.ViaFUSE: tc.fuse}
			driver, via, err := g.driver(tc.asked)
			if tc.got == "" {
				if storage.KindOf(err) != storage.KindUnsupported {
					t.Fatalf("got %v, %v", via, err)
				}
				for _, text := range tc.says {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%v says nothing of %q", err, text)
					}
				}
				return
			}
			if err != nil || via != tc.got || driver != g.drivers[tc.got] {
				t.Errorf("got %v (%v), want %v", via, err, tc.got)
			}
		})
	}
}

// TestDriverStays: a device keeps the driver that it was made with, even when a better one is there later: nbd was loaded after the
// volume was attached, and the gateway restarts.
func TestDriverStays(t *testing.T) {
	kernel, fuse := &fakeDriver{}, &fakeDriver{}
	g := newTestGateway(t, kernel)
	g.drivers[host.ViaFUSE] = fuse
	g.put(t, record{Volume: "v", Attachment: 7, Access: storage.AccessExclusive, Via: host.ViaFUSE}) // half made: it is taken back
	g.resume("v")
	if len(fuse.detached) != 1 || len(kernel.detached) != 0 {
		t.Errorf("FUSE was asked for %v, the kernel's NBD for %v", fuse.detached, kernel.detached)
	}
}
