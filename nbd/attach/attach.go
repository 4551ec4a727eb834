// Package attach makes exports block devices of this host: FUSE with a loop device on top (FUSE), or the kernel's network
// block device (NBD), behind one interface, Driver. The owner of devices is the host's gateway (gateway/hostgateway); it
// says which export a device serves and when.
//
// A device outlives the process that serves it. When that ends, killed or for an upgrade, the kernel keeps the device's
// requests; the next process finds the device again by its name (Driver.Resume), and what was not answered is served
// then. No application sees an error in between, only a pause. What the kernel sends again may have been sent before: the
// export that Resume is given must be one under which no old request can land any more (a new session, after the old one
// was closed in every group).
//
// For FUSE the kernel keeps requests as long as the descriptor of the connection is open somewhere. A Keeper, a process
// of its own that does nothing else, holds it. For NBD the kernel itself keeps them, for the dead-connection time-out.
//
// To open the file of a device that nobody serves, or to ask its size, may take for ever. Helper processes (Helper) do that,
// so that a gateway that is killed can always end, and its successor begin.
//
// The package knows nothing of volumes. Everything exported may be used concurrently, but a Device's Resize and Detach,
// which the owner calls one after another.
package attach

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/nbd"
)

// BlockSize is the logical block size of every device, in bytes: that of plain NBD clients, so that a volume has the
// same partition table however it is attached.
const BlockSize = 512

// Request says what a device is to be.
type Request struct {
	// Name names the device at this host for as long as it exists: a DNS label.
	Name     string
	ReadOnly bool
	// Device and Identity are what an earlier process of this boot has noted of the device, to find it by where its file system
	// shows nowhere any more; zero: nothing.
	Device   string
	Identity blockdev.Identity
	// Open opens the export for one connection of the device, of which a driver may make several. The size in its Info is
	// the device's.
	Open func(ctx context.Context) (nbd.Export, error)
}

// Driver makes devices of one kind.
type Driver interface {
	// Available returns why this host cannot have such devices (KindUnsupported), nil if it can.
	Available() error
	// Attach makes a device and returns when it can be used. What an earlier attempt of that name has left is removed
	// first. On an error nothing is left, or Detach removes it.
	Attach(ctx context.Context, r Request) (Device, error)
	// Resume serves the device of that name, which an earlier process has made, and returns when it is served. KindNotFound
	// if there is none; KindIO if there is one that cannot be served any more: Detach with force removes it.
	Resume(ctx context.Context, r Request) (Device, error)
	// Detach removes what there is under the request's name, served or not, by force.
	Detach(ctx context.Context, r Request) error
}

// Device is a block device that is being served.
type Device interface {
	// Path is its path, "/dev/loop3".
	Path() string
	// SizeBytes is its size.
	SizeBytes() int64
	// Identity is what the device at Path is told by from another that has got its path since.
	Identity() blockdev.Identity
	// Check returns why the device at Path is not this one any more (KindConflict): somebody else has freed it, and it may be
	// another's by now. It never waits for the device to be served.
	Check() error
	// Settle hides what shows of the device besides itself. It is called when Path and Identity are noted where a later process
	// finds them (Request.Device): by nothing else is the device found from then on. It may be repeated.
	Settle() error
	// Resize makes it as large as its export is now.
	Resize(ctx context.Context) error
	// Sync has the kernel write what it holds of what was written to the device, and to file systems on it that are mounted in
	// this mount namespace. It waits for the device to be served, until ctx ends.
	Sync(ctx context.Context) error
	// Unmount unmounts the file systems on the device that are mounted in this mount namespace, and returns when what was written to
	// them is written out, or ctx ends. One that somebody uses is KindConflict, unless it is lazy: then it shows no more, and its
	// users keep it.
	Unmount(ctx context.Context, lazy bool) error
	// Detach removes it. KindConflict while it is in use, unless forced: then whoever uses it gets errors. It may be
	// repeated.
	Detach(ctx context.Context, force bool) error
	// Stop ends the serving and leaves the device to the next process: requests that are being served are answered if
	// that takes no longer than ctx, all others wait. The exports are closed when it returns.
	Stop(ctx context.Context)
	// Ended is closed when the device was removed, or cannot be served any more.
	Ended() <-chan struct{}
}

// Config configures drivers.
type Config struct {
	// Dir is where they keep mount points and small notes; it belongs to them alone.
	Dir string
	// Helper is the command, with its first arguments, that runs Helper with the arguments that follow.
	Helper []string
	// Keeper holds descriptors beyond the end of this process; required for FUSE.
	Keeper Keeper
	// ResendAfter is how long an NBD request is unanswered before the kernel looks whether its connection was replaced, and
	// sends it again on the new one if so (default 200 ms; it is looked at about every second then). DeadTimeout is for how
	// long requests wait for a gateway to come back before they fail (default 1 h).
	ResendAfter, DeadTimeout time.Duration
	// BufferBytes bounds the payloads that all devices of a driver work on at a time (default 128 MiB): one that waits for the
	// cluster holds what was sent to it, and so do all of them when the cluster stands still.
	BufferBytes int64
	// Logger receives one line per event an operator would act on; nil discards.
	Logger *slog.Logger
}

func (c *Config) setDefaults() {
	c.ResendAfter = cmp.Or(max(c.ResendAfter, 0), 200*time.Millisecond)
	c.DeadTimeout = cmp.Or(max(c.DeadTimeout, 0), time.Hour)
	c.BufferBytes = cmp.Or(max(c.BufferBytes, 0), 128<<20)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// checkName returns an error of KindInvalid for names that are not safe in paths.
func checkName(name string) error {
	if err := storage.CheckVolumeName(name); err != nil {
		return storage.E("attach", storage.KindInvalid, fmt.Sprintf("device %q", name), err)
	}
	return nil
}
