package csitest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostfs"
	"github.com/storaged/storaged/internal/blockdev"
)

// Machine is a host of the world: its gateway and its kernel. It implements hostfs.Devices; Mounts is its hostfs.Mounts.
type Machine struct {
	w        *World
	id, zone string

	mu      sync.Mutex // guards what follows; may be held while the world's is taken, not the other way round
	number  uint64     // of the device made last
	devices map[string]host.Attachment
	lost    map[string]bool   // volumes whose devices nobody serves any more
	stolen  map[string]bool   // volumes whose devices' paths are another's by now, which the gateway has not noticed
	numbers map[string]uint64 // by device path
	mounts  []hostfs.Mount
	targets map[string]bool // files and directories that Bind made
	hung    map[string]chan struct{}
	begun   map[string]int // steps of the kernel, by what is done
	refused map[string]bool
}

// Machine returns a new machine of the world.
func (w *World) Machine(id, zone string) *Machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines++
	return &Machine{w: w, id: id, zone: zone, number: uint64(w.machines) << 20, devices: map[string]host.Attachment{},
		lost: map[string]bool{}, stolen: map[string]bool{}, numbers: map[string]uint64{}, targets: map[string]bool{},
		hung: map[string]chan struct{}{}, begun: map[string]int{}, refused: map[string]bool{}}
}

var (
	_ hostfs.Devices = (*Machine)(nil)
	_ hostfs.Mounts  = (*Mounts)(nil)
)

// Attach implements hostfs.Devices. It knows attachments that the controller has made, and no others.
func (m *Machine) Attach(ctx context.Context, r host.Request) (host.Attachment, error) {
	return get(m.w, "attach", func() (host.Attachment, error) {
		const op = "attach"
		subject := "volume " + r.Volume
		if err := r.Validate(); err != nil {
			return host.Attachment{}, err
		}
		v, err := m.w.cluster.Volume(ctx, r.Volume)
		if err != nil {
			return host.Attachment{}, err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if d, ok := m.devices[r.Volume]; ok {
			if d.Access != r.Access || d.ReadOnly != r.ReadOnly || d.ID != r.AttachmentID {
				return host.Attachment{}, storage.E(op, storage.KindConflict, subject, errors.New("it is attached here on other terms"))
			}
			if seen := m.seen(ctx, d); !m.lost[r.Volume] {
				return seen, nil
			}
			return host.Attachment{}, storage.E(op, storage.KindConflict, subject, errors.New("its device has failed; detach it first"))
		}
		at := slices.IndexFunc(v.Attachments, func(a api.Attachment) bool { return a.ID == r.AttachmentID })
		if at < 0 || v.Attachments[at].Holder.ID != m.id {
			return host.Attachment{}, storage.E(op, storage.KindFenced, subject, fmt.Errorf("attachment %d is not this host's", r.AttachmentID))
		}
		m.number++
		d := host.Attachment{Volume: r.Volume, VolumeID: v.ID, ID: r.AttachmentID, Access: r.Access, ReadOnly: r.ReadOnly, Via: host.ViaNBD,
			Device: fmt.Sprintf("/dev/fake%d", m.number), SizeBytes: v.SizeBytes, State: host.StateReady,
			Identity: blockdev.Identity{Backend: "fake", Sequence: m.number}}
		m.devices[r.Volume], m.numbers[d.Device] = d, m.number
		return d, nil
	})
}

// seen returns the device as it is now: it has failed if its attachment is gone.
func (m *Machine) seen(ctx context.Context, d host.Attachment) host.Attachment {
	v, err := m.w.cluster.Volume(ctx, d.Volume)
	if err != nil || !slices.ContainsFunc(v.Attachments, func(a api.Attachment) bool { return a.ID == d.ID }) {
		d.State, d.Reason = host.StateFailed, "the volume was taken over"
	}
	if m.lost[d.Volume] {
		d.State, d.Reason = host.StateFailed, "the connection to the kernel was lost"
	}
	return d
}

// Detach implements hostfs.Devices.
func (m *Machine) Detach(_ context.Context, volume string, force bool) error {
	return m.w.step("detach", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		d, ok := m.devices[volume]
		if !ok {
			return nil
		}
		number := m.numbers[d.Device]
		if !force && m.lost[volume] {
			return storage.E("detach", storage.KindConflict, "volume "+volume, errors.New("its device is not served; only force removes it"))
		}
		// As on a real host: a file system uses its device, and a node that is shown somewhere does not until somebody opens it.
		if !force && slices.ContainsFunc(m.mounts, func(at hostfs.Mount) bool { return at.Device == number }) {
			return storage.E("detach", storage.KindConflict, "volume "+volume, errors.New("the device is in use"))
		}
		delete(m.devices, volume)
		delete(m.lost, volume)
		delete(m.stolen, volume)
		delete(m.numbers, d.Device)
		return nil
	})
}

// Refresh implements hostfs.Devices.
func (m *Machine) Refresh(ctx context.Context, volume string, sizeBytes int64) (host.Attachment, error) {
	return get(m.w, "refresh", func() (host.Attachment, error) {
		v, err := m.w.cluster.Volume(ctx, volume)
		if err != nil {
			return host.Attachment{}, err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		d, ok := m.devices[volume]
		switch {
		case !ok:
			return d, storage.E("refresh", storage.KindNotFound, "volume "+volume, errors.New("it is not attached here"))
		case v.SizeBytes < sizeBytes:
			return d, storage.E("refresh", storage.KindUnavailable, "volume "+volume, errors.New("it is not as large"))
		}
		d.SizeBytes = v.SizeBytes
		m.devices[volume] = d
		return d, nil
	})
}

// Allocated implements hostfs.Devices.
func (m *Machine) Allocated(_ context.Context, volume string, attachmentID storage.AttachmentID) (bool, error) {
	return get(m.w, "ask", func() (bool, error) {
		m.mu.Lock()
		d, ok := m.devices[volume]
		m.mu.Unlock()
		if !ok || attachmentID != 0 && d.ID != attachmentID {
			return false, storage.E("ask", storage.KindNotFound, "volume "+volume, errors.New("it is not attached here"))
		}
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		return m.w.content[d.VolumeID] != fileSystem{}, nil
	})
}

// Attachments implements hostfs.Devices.
func (m *Machine) Attachments(ctx context.Context) ([]host.Attachment, error) {
	return get(m.w, "list", func() ([]host.Attachment, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		var list []host.Attachment
		for _, name := range slices.Sorted(maps.Keys(m.devices)) {
			list = append(list, m.seen(ctx, m.devices[name]))
		}
		return list, nil
	})
}

// Info implements hostfs.Devices.
func (m *Machine) Info(context.Context) (host.Info, error) {
	return get(m.w, "ask", func() (host.Info, error) {
		return host.Info{HostID: m.id, Zone: m.zone, Version: "test", Cluster: storage.ClusterID{1}}, nil
	})
}

// Freeze makes the kernel refuse writes to the volume's file systems, as it does after an error.
func (m *Machine) Freeze(volume string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.mounts {
		if m.mounts[i].Device == m.numbers[m.devices[volume].Device] {
			m.mounts[i].FrozenFS = true
		}
	}
}

// Lose has a device be one that the gateway has lost: it has failed, nobody serves it, and only force removes it.
func (m *Machine) Lose(volume string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost[volume] = true
}

// Steal has the path of a volume's device be another device's, as when somebody has freed a loop device on the machine.
func (m *Machine) Steal(volume string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stolen[volume] = true
}

// Reboot unmounts everything, as a restart of the machine does.
func (m *Machine) Reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounts = nil
}

// Hang makes every step of the kernel of this name ("format", "mount", "unmount", "look at") wait until release is called, whatever
// the context of its call; release may be called again.
func (m *Machine) Hang(what string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	hung := make(chan struct{})
	m.hung[what] = hung
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.hung, what)
		close(hung)
	})
}

// Refuse has every step of the kernel that does this fail for good.
func (m *Machine) Refuse(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused[what] = true
}

// Begun returns how many steps of the kernel that do this have begun.
func (m *Machine) Begun(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.begun[what]
}

// wait is what a step of the kernel begins with.
func (m *Machine) wait(what string) {
	m.mu.Lock()
	m.begun[what]++
	hung := m.hung[what]
	m.mu.Unlock()
	if hung != nil {
		<-hung
	}
}

// Left returns what is mounted, attached or made on the machine and not taken away, in words.
func (m *Machine) Left() (left []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range m.mounts {
		left = append(left, "mount "+at.Path)
	}
	for name := range m.devices {
		left = append(left, "device of "+name)
	}
	for path := range m.targets {
		left = append(left, "target "+path)
	}
	slices.Sort(left)
	return left
}

// Made reports whether Bind has made something at path that Remove did not remove.
func (m *Machine) Made(path string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.targets[path]
}

// Mounts is the kernel of a Machine. A step of it may fail as everything else; Bind is two, the target and the mount.
type Mounts struct{ machine *Machine }

// Mounts returns the machine's kernel.
func (m *Machine) Mounts() *Mounts { return &Mounts{machine: m} }

// step is World.step under the machine's lock.
func (m *Mounts) step(op string, do func() error) error {
	m.machine.wait(op)
	return m.machine.w.step(op, func() error {
		m.machine.mu.Lock()
		defer m.machine.mu.Unlock()
		if m.machine.refused[op] {
			return storage.E(op, storage.KindInternal, "", errors.New("the kernel of the test refuses it"))
		}
		return do()
	})
}

// List implements hostfs.Mounts.
func (m *Mounts) List() (list []hostfs.Mount, err error) {
	err = m.step("list mounts", func() error {
		list = slices.Clone(m.machine.mounts)
		return nil
	})
	return list, err
}

// Real implements hostfs.Mounts.
func (m *Mounts) Real(path string) string { return filepath.Clean(path) }

// volumeLocked returns the device that the disk is.
func (m *Mounts) volumeLocked(disk hostfs.Disk) (host.Attachment, error) {
	for _, d := range m.machine.devices {
		switch {
		case d.Device != disk.Path:
		case m.machine.stolen[d.Volume], d.Identity != disk.Identity:
			return d, storage.E("look at", storage.KindConflict, "device "+disk.Path, errors.New("it is another's by now"))
		default:
			return d, nil
		}
	}
	return host.Attachment{}, storage.E("look at", storage.KindNotFound, "device "+disk.Path, errors.New("there is none"))
}

// Device implements hostfs.Mounts.
func (m *Mounts) Device(_ context.Context, disk hostfs.Disk) (b hostfs.BlockDevice, err error) {
	err = m.step("look at", func() error {
		d, err := m.volumeLocked(disk)
		b = hostfs.BlockDevice{Number: m.machine.numbers[disk.Path], SizeBytes: d.SizeBytes, ReadOnly: d.ReadOnly}
		return err
	})
	return b, err
}

// Settle implements hostfs.Mounts.
func (m *Mounts) Settle(context.Context, hostfs.Disk) error { return nil }

// Format implements hostfs.Mounts.
func (m *Mounts) Format(ctx context.Context, disk hostfs.Disk, fsType string, readOnly bool, allocated hostfs.Allocation) (found string, err error) {
	device := disk.Path
	holds, unknown := allocated(ctx)
	err = m.step("format", func() error {
		d, err := m.volumeLocked(disk)
		if err != nil {
			return err
		}
		m.machine.w.mu.Lock()
		defer m.machine.w.mu.Unlock()
		found = m.machine.w.content[d.VolumeID].fsType
		switch {
		case found != "" && fsType != "" && found != fsType, found == "" && readOnly:
			return storage.E("format", storage.KindConflict, "device "+device, fmt.Errorf("it holds %q", found))
		case found == "" && unknown != nil:
			return unknown
		case found == "" && holds:
			return storage.E("format", storage.KindConflict, "device "+device, errors.New("it holds data"))
		case found == "":
			found = fsType
			if found == "" {
				found = "ext4"
			}
			m.machine.w.content[d.VolumeID] = fileSystem{fsType: found, sizeBytes: d.SizeBytes}
		}
		return nil
	})
	return found, err
}

// putLocked mounts, unless that is done.
func (m *Mounts) putLocked(put hostfs.Mount) error {
	there, ok := hostfs.MountAt(m.machine.mounts, put.Path)
	switch {
	case !ok || there.Device != put.Device || there.Node != put.Node:
		m.machine.mounts = append(m.machine.mounts, put)
	case there.ReadOnly != put.ReadOnly:
		return storage.E("mount", storage.KindConflict, put.Path, errors.New("it is mounted there on other terms"))
	}
	return nil
}

// Mount implements hostfs.Mounts.
func (m *Mounts) Mount(_ context.Context, disk hostfs.Disk, target, fsType string, options []string) error {
	return m.step("mount", func() error {
		if _, err := m.volumeLocked(disk); err != nil {
			return err
		}
		return m.putLocked(hostfs.Mount{Path: target, Device: m.machine.numbers[disk.Path], FSType: fsType, Whole: true,
			ReadOnly: slices.Contains(options, "ro")})
	})
}

// Bind implements hostfs.Mounts.
func (m *Mounts) Bind(_ context.Context, source, target string, readOnly bool) error {
	if err := m.step("make", func() error { m.machine.targets[target] = true; return nil }); err != nil {
		return err
	}
	return m.step("bind", func() error {
		at := slices.IndexFunc(m.machine.mounts, func(x hostfs.Mount) bool { return x.Path == source })
		if at < 0 {
			return storage.E("bind", storage.KindInternal, target, fmt.Errorf("nothing is mounted at %s", source))
		}
		bound := m.machine.mounts[at]
		bound.Path, bound.ReadOnly = target, bound.ReadOnly || readOnly
		return m.putLocked(bound)
	})
}

// BindDevice implements hostfs.Mounts.
func (m *Mounts) BindDevice(_ context.Context, disk hostfs.Disk, target string, readOnly bool) error {
	if err := m.step("make", func() error { m.machine.targets[target] = true; return nil }); err != nil {
		return err
	}
	return m.step("bind", func() error {
		if _, err := m.volumeLocked(disk); err != nil {
			return err
		}
		return m.putLocked(hostfs.Mount{Path: target, Node: m.machine.numbers[disk.Path], FSType: "devtmpfs", Whole: true, ReadOnly: readOnly})
	})
}

// Unmount implements hostfs.Mounts.
func (m *Mounts) Unmount(_ context.Context, target string) error {
	return m.step("unmount", func() error {
		m.machine.mounts = slices.DeleteFunc(m.machine.mounts, func(x hostfs.Mount) bool { return x.Path == target })
		return nil
	})
}

// Remove implements hostfs.Mounts.
func (m *Mounts) Remove(_ context.Context, target string) error {
	return m.step("remove", func() error { delete(m.machine.targets, target); return nil })
}

// Grow implements hostfs.Mounts.
func (m *Mounts) Grow(_ context.Context, disk hostfs.Disk, path string) error {
	return m.step("grow", func() error {
		d, err := m.volumeLocked(disk)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(m.machine.mounts, func(x hostfs.Mount) bool { return x.Path == path && !x.ReadOnly }) {
			return storage.E("grow", storage.KindInternal, path, errors.New("nothing is mounted there for writing"))
		}
		m.machine.w.mu.Lock()
		defer m.machine.w.mu.Unlock()
		m.machine.w.content[d.VolumeID] = fileSystem{fsType: m.machine.w.content[d.VolumeID].fsType, sizeBytes: d.SizeBytes}
		return nil
	})
}

// Usage implements hostfs.Mounts.
func (m *Mounts) Usage(context.Context, string) (u hostfs.Usage, err error) {
	err = m.step("look at", func() error {
		u = hostfs.Usage{TotalBytes: 1 << 30, UsedBytes: 1 << 20, AvailableBytes: 1<<30 - 1<<20, TotalInodes: 1000, UsedInodes: 11, AvailableInodes: 989}
		return nil
	})
	return u, err
}
