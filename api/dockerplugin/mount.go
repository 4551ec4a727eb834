package dockerplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostfs"
)

// Mount makes the volume appear on this host for the user of that id, and returns where. The same id again is the same
// user. KindConflict when somebody else has the volume: the text says who, since when, and how to take it over.
func (p *Plugin) Mount(ctx context.Context, name, user string) (string, error) {
	const op = "mount"
	rec, known, unlock, err := p.begin(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	switch {
	case !known || rec.ID == 0:
		return "", unknown(op, rec)
	case user == "" || len(user) > maxUserBytes:
		return "", storage.E(op, storage.KindInvalid, rec.subject(), fmt.Errorf("the id of the mount has %d characters, want 1 to %d", len(user), maxUserBytes))
	case len(rec.Users) >= maxUsers && !slices.Contains(rec.Users, user):
		return "", storage.E(op, storage.KindConflict, rec.subject(), fmt.Errorf("it has %d users here already", len(rec.Users)))
	}
	if !rec.Held {
		rec.Held = true
		if err := p.records.save(rec); err != nil {
			return "", err
		}
	}
	a, err := p.attach(ctx, rec)
	switch {
	case err == nil:
		err = p.show(ctx, a, rec)
	case storage.KindOf(err) == storage.KindConflict && len(rec.Users) == 0: // refused: there is nothing to take back
		rec.Held = false
		return "", errors.Join(err, p.records.save(rec))
	}
	if err == nil && !slices.Contains(rec.Users, user) {
		with := rec
		with.Users = append(slices.Clone(rec.Users), user)
		err = p.records.save(with)
	}
	switch {
	case errors.Is(err, hostfs.ErrPending): // the next call finds it, or Settle takes it back
		return "", err
	case err != nil:
		if len(rec.Users) == 0 { // a host that cannot mount the volume must not keep it from the others
			err = errors.Join(err, p.release(ctx, &rec))
		}
		return "", err
	}
	return p.mountpoint(rec.Volume), nil
}

// show mounts the volume's device, unless that is done.
func (p *Plugin) show(ctx context.Context, a host.Attachment, rec record) error {
	d, err := p.config.Mounts.Device(ctx, hostfs.DiskOf(a))
	if err != nil {
		return err
	}
	path := p.mountpoint(rec.Volume)
	list, err := p.config.Mounts.List()
	if err != nil {
		return err
	}
	m, there := hostfs.MountAt(list, p.config.Mounts.Real(path))
	switch {
	case there && m.Device == d.Number && m.ReadOnly == rec.Options.ReadOnly:
		return nil
	case there && len(rec.Users) > 0:
		return storage.E("mount", storage.KindConflict, rec.subject(), fmt.Errorf("containers here still use what was its device before "+
			"(%s); stop them", path))
	case there: // left over; nobody uses it
		if err := p.config.Mounts.Unmount(ctx, path); err != nil {
			return err
		}
	}
	var flags []string
	if rec.Options.ReadOnly {
		flags = []string{"ro"}
	}
	fsType, err := p.config.Mounts.Format(ctx, hostfs.DiskOf(a), rec.Options.FSType, rec.Options.ReadOnly, hostfs.AllocationOf(p.config.Devices, a))
	if err != nil {
		return err
	}
	if err := p.config.Mounts.Mount(ctx, hostfs.DiskOf(a), path, fsType, flags); err != nil || rec.Options.ReadOnly {
		return err
	}
	// It may have grown while it was not mounted. What cannot grow can be used as it is.
	if err := p.config.Mounts.Grow(ctx, hostfs.DiskOf(a), path); err != nil {
		p.log.Warn("the file system is mounted smaller than its volume: it could not grow", "volume", rec.Volume, "error", err)
	}
	return nil
}

// attach makes the volume a device of this host. A device that has failed, for example because the volume was taken over
// and given back since, gives way when nobody here uses it.
func (p *Plugin) attach(ctx context.Context, rec record) (host.Attachment, error) {
	subject := rec.subject()
	here, _, err := hostfs.AttachmentOf(ctx, p.config.Devices, rec.Volume)
	if err != nil {
		return host.Attachment{}, err
	}
	if here.State == host.StateFailed {
		if len(rec.Users) > 0 {
			return here, storage.E("mount", storage.KindFenced, subject, fmt.Errorf("%s here has failed: %s; stop the containers on "+
				"this host that use it, and start them again", here.ItsDevice(), here.Reason))
		}
		if err := p.hide(ctx, rec.Volume); err != nil {
			return here, storage.E("mount", storage.KindFenced, subject, fmt.Errorf("%s here has failed (%s), and is not given up yet: %w",
				here.ItsDevice(), here.Reason, err))
		}
	}
	a, err := p.config.Devices.Attach(ctx, rec.Options.request(rec.Volume))
	switch {
	case errors.Is(err, storage.ErrConflict):
		return a, storage.E("mount", storage.KindConflict, subject, fmt.Errorf("%w. With Docker: make the volume known here with "+
			"`-o take_over=true` (on a host that did not make it, `docker volume rm` only forgets it), or attach it by hand with "+
			"`storagectl attach %s --take-over` on this host and start the container again", err, rec.Volume))
	case err != nil:
		return a, err
	case a.VolumeID != rec.ID:
		return a, storage.E("mount", storage.KindNotFound, subject, errors.New("it was deleted, and another one has its name; "+
			"`docker volume rm` forgets the old one here"))
	case a.State == host.StateFailed:
		return a, storage.E("mount", storage.KindFenced, subject, fmt.Errorf("%s has failed: %s", a.ItsDevice(), a.Reason))
	}
	return a, nil
}

// Unmount ends the use of the volume by that id. After the last one it is unmounted and detached, and another host may
// have it. It may be repeated.
func (p *Plugin) Unmount(ctx context.Context, name, user string) error {
	rec, known, unlock, err := p.begin(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if !known {
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(rec.Users), func(u string) bool { return u == user })
	if len(left) > 0 {
		rec.Users = left
		return p.records.save(rec)
	}
	if !rec.Held {
		return nil
	}
	return p.release(ctx, &rec)
}

// release takes away what Mount did, and writes that down. A device that is still in use stays, and so does the volume. This
// happens because Docker counts a container that files are copied into as one user, and reports that user gone when the copy is
// done. The container's own end then finds nothing but the device to release.
func (p *Plugin) release(ctx context.Context, rec *record) error {
	err := p.hide(ctx, rec.Volume)
	if errors.Is(err, storage.ErrConflict) && len(rec.Users) > 0 {
		p.log.Warn("a volume that Docker has given up is in use still", "volume", rec.Volume, "error", err)
	} else if errors.Is(err, hostfs.ErrPending) { // the users are gone; Settle releases what is left
		rec.Users = nil
		return errors.Join(err, p.records.save(*rec))
	} else if err != nil {
		return err
	} else {
		rec.Held = false
	}
	rec.Users = nil
	return p.records.save(*rec)
}

// hide unmounts and detaches the volume, as far as it is mounted and attached.
func (p *Plugin) hide(ctx context.Context, volume string) error {
	path := p.mountpoint(volume)
	if err := p.config.Mounts.Unmount(ctx, path); err != nil {
		return err
	}
	if err := p.config.Mounts.Remove(ctx, path); err != nil {
		return err
	}
	return hostfs.Release(ctx, p.config.Devices, p.config.Mounts, volume)
}

// Settle waits for the work that a Mount has left running (hostfs.ErrPending), and undoes it unless another Mount needs it. Docker
// does not ask again by itself, and the volume must not stay here without a user.
func (p *Plugin) Settle(ctx context.Context, name string) error {
	volume := api.VolumeName(name)
	a, _, err := hostfs.AttachmentOf(ctx, p.config.Devices, volume)
	if err == nil && a.Device != "" {
		err = p.config.Mounts.Settle(ctx, hostfs.DiskOf(a))
	}
	if err != nil {
		return err
	}
	return p.recover(ctx, volume)
}

// Recover takes back what a plugin before this one has begun and nobody has repeated: volumes that are held and have no
// users, as after a restart of the host. What it cannot take back it logs; the volume's next user can. It may run beside
// other calls.
func (p *Plugin) Recover(ctx context.Context) error {
	names, err := p.records.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return storage.E("recover", storage.KindCanceled, "", ctx.Err())
		}
		if err := p.recover(ctx, name); err != nil {
			p.log.Warn("a volume without users cannot be released", "volume", name, "error", err)
		}
	}
	return nil
}

func (p *Plugin) recover(ctx context.Context, volume string) error {
	ctx, cancel := context.WithTimeout(ctx, longCall)
	defer cancel()
	rec, known, unlock, err := p.begin(ctx, volume)
	if err != nil {
		return err
	}
	defer unlock()
	if !known || !rec.Held || len(rec.Users) > 0 {
		return nil
	}
	return p.release(ctx, &rec)
}
