package hostfs

import (
	"context"
	"fmt"
	"path/filepath"
)

// Slotted are Mounts whose calls end with their contexts, even when the kernel or a tool hangs. The work goes on in the slot of
// its device and its path. There the same call finds it, and every other call waits for its end ([slots]). Slotted is made by
// InSlots, and ends with Close.
type Slotted struct {
	mounts Mounts
	slots  *slots
}

var _ Mounts = (*Slotted)(nil)

// InSlots returns Mounts that do what m does. m's own calls may take any time: their contexts end only with Close. They must be
// idempotent, because a caller that asks again cannot know what has been done.
func InSlots(m Mounts) *Slotted { return &Slotted{mounts: m, slots: newSlots()} }

// Close asks what is under way to end: tools are killed, system calls end when they end. Nothing can be begun any more.
func (s *Slotted) Close() { s.slots.close() }

// deviceKey is the slot of what works on a device, pathKey of what changes what is mounted at a path. Devices are told apart by
// their paths alone: another one at the same path waits, which costs nothing.
func deviceKey(d Disk) string    { return "device " + d.Path }
func pathKey(path string) string { return "path " + filepath.Clean(path) }
func onDevice(op string, d Disk, terms ...any) task {
	return task{op: op, subject: "device " + d.Path, terms: fmt.Sprintf("%q", append(terms, d.Identity.String()))}
}
func onPath(op, path string, terms ...any) task {
	return task{op: op, subject: path, terms: fmt.Sprintf("%q", terms)}
}

const lookAt = "look at"

func look(t task) task {
	t.look = true
	return t
}

// do is inSlot for what returns nothing.
func (s *Slotted) do(ctx context.Context, what task, keys []string, do func(context.Context) error) error {
	_, err := inSlot(ctx, s.slots, what, keys, func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) })
	return err
}

// List implements Mounts: it reads the kernel's table, which waits for no device.
func (s *Slotted) List() ([]Mount, error) { return s.mounts.List() }

// Real implements Mounts.
func (s *Slotted) Real(path string) string { return s.mounts.Real(path) }

// Device implements Mounts. It has a slot of its own: to be looked at does a device no harm.
func (s *Slotted) Device(ctx context.Context, d Disk) (BlockDevice, error) {
	return inSlot(ctx, s.slots, look(onDevice(lookAt, d)), []string{lookAt + " " + d.Path}, func(ctx context.Context) (BlockDevice, error) {
		return s.mounts.Device(ctx, d)
	})
}

// Settle implements Mounts.
func (s *Slotted) Settle(ctx context.Context, d Disk) error {
	return s.do(ctx, onDevice("wait for", d), []string{deviceKey(d)}, func(ctx context.Context) error { return s.mounts.Settle(ctx, d) })
}

// Format implements Mounts.
func (s *Slotted) Format(ctx context.Context, d Disk, fsType string, readOnly bool, allocated Allocation) (string, error) {
	return inSlot(ctx, s.slots, onDevice("format", d, fsType, readOnly), []string{deviceKey(d)}, func(ctx context.Context) (string, error) {
		return s.mounts.Format(ctx, d, fsType, readOnly, allocated)
	})
}

// Mount implements Mounts.
func (s *Slotted) Mount(ctx context.Context, d Disk, target, fsType string, options []string) error {
	return s.do(ctx, onDevice("mount", d, target, fsType, options), []string{deviceKey(d), pathKey(target)}, func(ctx context.Context) error {
		return s.mounts.Mount(ctx, d, target, fsType, options)
	})
}

// Bind implements Mounts.
func (s *Slotted) Bind(ctx context.Context, source, target string, readOnly bool) error {
	return s.do(ctx, onPath("bind", target, source, readOnly), []string{pathKey(source), pathKey(target)}, func(ctx context.Context) error {
		return s.mounts.Bind(ctx, source, target, readOnly)
	})
}

// BindDevice implements Mounts.
func (s *Slotted) BindDevice(ctx context.Context, d Disk, target string, readOnly bool) error {
	return s.do(ctx, onDevice("show", d, target, readOnly), []string{deviceKey(d), pathKey(target)}, func(ctx context.Context) error {
		return s.mounts.BindDevice(ctx, d, target, readOnly)
	})
}

// Unmount implements Mounts.
func (s *Slotted) Unmount(ctx context.Context, target string) error {
	return s.do(ctx, onPath("unmount", target), []string{pathKey(target)}, func(ctx context.Context) error { return s.mounts.Unmount(ctx, target) })
}

// Remove implements Mounts.
func (s *Slotted) Remove(ctx context.Context, target string) error {
	return s.do(ctx, onPath("remove", target), []string{pathKey(target)}, func(ctx context.Context) error { return s.mounts.Remove(ctx, target) })
}

// Grow implements Mounts.
func (s *Slotted) Grow(ctx context.Context, d Disk, path string) error {
	return s.do(ctx, onDevice("grow the file system of", d, path), []string{deviceKey(d), pathKey(path)}, func(ctx context.Context) error {
		return s.mounts.Grow(ctx, d, path)
	})
}

// Usage implements Mounts. As Device, it has a slot of its own.
func (s *Slotted) Usage(ctx context.Context, path string) (Usage, error) {
	return inSlot(ctx, s.slots, look(onPath(lookAt, path)), []string{lookAt + " " + path}, func(ctx context.Context) (Usage, error) {
		return s.mounts.Usage(ctx, path)
	})
}
