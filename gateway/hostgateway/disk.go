package hostgateway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/gateway/export"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/attach"
)

// disk is an attached volume. What changes it has the volume's turn (Gateway.turn); the lock is for those who look.
type disk struct {
	gateway *Gateway

	mu        sync.Mutex // guards what follows
	record    record
	state     host.State
	reason    string
	foreign   bool            // record.Device is somebody else's by now: nobody is told that path any more
	lost      string          // why the device is of no use any more, noted while it is being detached; "" otherwise
	device    attach.Device   // nil: not served
	handle    *volume.Volume  // keeps the volume open beyond the device's connections; nil: not open
	refresh   chan chan error // asks the watch to look at the size now; nil while nothing watches
	unwatch   context.CancelFunc
	watched   chan struct{} // closed when the watch has ended
	finishing bool          // something in the background sees to it that the disk is given up; guarded by Gateway.mu
	// interrupt ends an attempt to resume the device, which waits for the cluster for as long as that takes; nil: none is made.
	interrupt context.CancelFunc
	parted    bool // its device was taken apart because the host goes down; guarded by the volume's turn
}

// describe returns what others see.
func (d *disk) describe() host.Attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.record
	if d.foreign {
		r.Device, r.Identity = "", blockdev.Identity{}
	}
	a := host.Attachment{Volume: r.Volume, VolumeID: r.VolumeID, ID: r.Attachment, Generation: r.Generation, Access: r.Access,
		ReadOnly: r.ReadOnly, Via: r.Via, Device: r.Device, Identity: r.Identity, State: d.state, Reason: d.reason, Since: r.Since}
	if d.device != nil && !d.foreign {
		a.SizeBytes = d.device.SizeBytes()
	}
	if link := d.gateway.linkOf(r.Volume); link != "" && r.Device != "" {
		a.Link = link
	}
	return a
}

// verified returns what others see, of a device that was looked at once more: its path may have become another's.
func (d *disk) verified() host.Attachment {
	d.verify()
	return d.describe()
}

// verify notes that the device at the path is not the disk's any more. That is asked again and again, because nobody is told
// when a loop device is freed, or an NBD device disconnected, and its number given to the next who asks. It reports whether the
// path may be used.
func (d *disk) verify() bool {
	d.mu.Lock()
	device, state, foreign := d.device, d.state, d.foreign
	d.mu.Unlock()
	if device == nil || state != host.StateReady {
		return !foreign
	}
	err := device.Check()
	if err == nil {
		return true
	}
	d.mu.Lock()
	reason := err.Error() + "; detach the volume, and attach it again"
	news := d.state == host.StateReady && d.device == device
	switch {
	case news:
		d.state, d.reason, d.foreign = host.StateFailed, reason, true
	case d.state == host.StateDetaching: // matters if nothing comes of the detach
		d.lost, d.foreign = reason, true
	}
	d.mu.Unlock()
	if news {
		d.gateway.unlink(d.record.Volume)
		d.gateway.logOf(d.record.Volume).Error("the volume has lost its device, whose path may be another's by now", "device", device.Path(), "error", err)
	}
	return false
}

func (d *disk) set(s host.State, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state, d.reason = s, reason
}

// Attach implements host.Gateway.
func (g *Gateway) Attach(ctx context.Context, q host.Request) (host.Attachment, error) {
	if err := q.Validate(); err != nil {
		return host.Attachment{}, err
	}
	done, err := g.turn(ctx, q.Volume)
	if err != nil {
		return host.Attachment{}, err
	}
	defer done()
	d := g.disk(q.Volume)
	if d != nil && d.gone() { // of an attachment that has ended here, and that the cluster was not told of
		if err := g.finish(ctx, d); err != nil {
			return host.Attachment{}, storage.E("attach", storage.KindOf(err), "volume "+q.Volume, fmt.Errorf("what it was attached as before is not ended yet: %w", err))
		}
		d = nil
	}
	if d != nil {
		d.verify()
		if err := d.sameTerms(q); err != nil {
			return host.Attachment{}, err
		}
		return d.describe(), nil
	}
	driver, via, err := g.driver(q.Via)
	if err != nil {
		return host.Attachment{}, err
	}
	c, err := g.connected(ctx)
	if err != nil {
		return host.Attachment{}, err
	}
	d = &disk{gateway: g, state: host.StateConnecting, record: record{Volume: q.Volume, Attachment: q.AttachmentID,
		Own: q.AttachmentID == 0, Access: q.Access, ReadOnly: q.ReadOnly, Via: via}}
	if err := g.add(d); err != nil {
		return host.Attachment{}, err
	}
	if err := g.bring(ctx, c, d, driver, q); err != nil {
		return host.Attachment{}, errors.Join(err, g.undo(d))
	}
	a := d.describe()
	g.logOf(q.Volume).Info("attached", "device", a.Device, "via", a.Via, "access", a.Access, "attachment", a.ID, "generation", a.Generation)
	return a, nil
}

// sameTerms returns nil if the disk is what is asked for, and can be used.
func (d *disk) sameTerms(q host.Request) error {
	a := d.describe()
	subject := "volume " + q.Volume
	switch {
	case a.State == host.StateFailed:
		return storage.E("attach", storage.KindConflict, subject, fmt.Errorf("%s on this host has failed (%s); detach it first", a.ItsDevice(), a.Reason))
	case a.State != host.StateReady:
		return storage.E("attach", storage.KindUnavailable, subject, fmt.Errorf("its device is %s: %s", a.State, a.Reason))
	case a.Access != q.Access || a.ReadOnly != q.ReadOnly || q.Via != host.ViaAuto && q.Via != a.Via || q.AttachmentID != 0 && q.AttachmentID != a.ID:
		mode := "read-write"
		if a.ReadOnly {
			mode = "read-only"
		}
		return storage.E("attach", storage.KindConflict, subject, fmt.Errorf("it is attached here already, as %s, %s %s by %s under attachment %d; detach it first",
			a.Device, a.Access, mode, a.Via, a.ID))
	}
	return nil
}

// add writes the disk down before anything is done for it.
func (g *Gateway) add(d *disk) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing {
		return errClosed
	}
	if g.down {
		return storage.E("attach", storage.KindUnavailable, "volume "+d.record.Volume, errors.New(whyDown))
	}
	if err := g.state.writeRecord(d.record); err != nil {
		return err
	}
	g.disks[d.record.Volume] = d
	return nil
}

// bring takes a new disk from its record to a device.
func (g *Gateway) bring(ctx context.Context, c *connection, d *disk, driver attach.Driver, q host.Request) error {
	at, err := g.attachment(ctx, q)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.record.VolumeID, d.record.Attachment, d.record.Generation, d.record.Since = at.Volume, at.ID, at.Generation, at.Since
	r := d.record
	d.mu.Unlock()
	if err := g.state.writeRecord(r); err != nil {
		return err
	}
	if err := d.open(ctx, c); err != nil {
		return err
	}
	device, err := driver.Attach(ctx, d.request(c))
	if err != nil {
		return err
	}
	return d.ready(device)
}

// attachment asks for the right to use the volume, or looks at the one that is named.
func (g *Gateway) attachment(ctx context.Context, q host.Request) (api.Attachment, error) {
	if q.AttachmentID == 0 {
		return g.api.Attach(ctx, api.NewAttachment{Volume: storage.VolumeRef{Name: q.Volume},
			Holder: storage.Holder{ID: g.hostID, Kind: storage.HolderHost, Host: g.host, Machine: g.machine}, Access: q.Access, ReadOnly: q.ReadOnly,
			TakeOver: q.TakeOver})
	}
	list, err := g.api.Attachments(ctx, api.AttachmentFilter{Volume: q.Volume, HolderID: g.hostID}, 0, 0)
	if err != nil {
		return api.Attachment{}, err
	}
	for _, a := range list {
		if a.ID != q.AttachmentID {
			continue
		}
		if a.Access != q.Access || a.ReadOnly && !q.ReadOnly {
			return a, storage.E("attach", storage.KindConflict, "volume "+q.Volume, fmt.Errorf("attachment %s was made on other terms", a.ID))
		}
		return a, nil
	}
	return api.Attachment{}, storage.E("attach", storage.KindFenced, "volume "+q.Volume,
		fmt.Errorf("attachment %d of this host (%s) has ended, or never was", q.AttachmentID, g.hostID))
}

// open opens the volume under its attachment, and keeps it open.
func (d *disk) open(ctx context.Context, c *connection) error {
	v, err := d.openVolume(ctx, c)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.handle = v
	d.mu.Unlock()
	return nil
}

// silence is how long a resuming gateway waits for the sessions of another machine, or of an earlier boot of this one, to end. It
// is longer than the catalog keeps a session that no report names (control.Config.SessionTimeout). What goes on after that is
// alive.
const silence = 45 * time.Second

// openAgain opens the volume of a disk that is written down.
func (d *disk) openAgain(ctx context.Context, c *connection) error {
	for until := time.Now().Add(silence); ; {
		err := d.open(ctx, c)
		if !errors.Is(err, storage.ErrConflict) || time.Now().After(until) {
			return err
		}
		d.set(host.StateConnecting, err.Error())
		if clock.Sleep(ctx, time.Second) != nil {
			return err
		}
	}
}

func (d *disk) openVolume(ctx context.Context, c *connection) (*volume.Volume, error) {
	d.mu.Lock()
	r := d.record
	d.mu.Unlock()
	return c.volume.Open(ctx, r.Volume, volume.OpenOptions{ReadOnly: r.ReadOnly, Attachment: r.Attachment})
}

// noted returns what is known of the disk's device. What was noted before the host was started says nothing any more.
func (d *disk) noted() attach.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := attach.Request{Name: d.record.Volume, ReadOnly: d.record.ReadOnly}
	if d.record.Boot != "" && d.record.Boot == d.gateway.boot() && !d.foreign {
		r.Device, r.Identity = d.record.Device, d.record.Identity
	}
	return r
}

// request asks a driver for the disk's device.
func (d *disk) request(c *connection) attach.Request {
	r := d.noted()
	r.Open = func(ctx context.Context) (nbd.Export, error) {
		v, err := d.openVolume(ctx, c)
		if err != nil {
			return nil, err
		}
		return export.Attached(v), nil
	}
	return r
}

// ready notes that the device is served, and watches over it.
func (d *disk) ready(device attach.Device) error {
	d.mu.Lock()
	if before := d.record.Identity.Sequence; before != device.Identity().Sequence {
		d.gateway.unname(before)
	}
	d.device, d.record.Device, d.record.Identity, d.foreign = device, device.Path(), device.Identity(), false
	d.record.Boot = d.gateway.boot()
	d.state, d.reason = host.StateReady, ""
	r := d.record
	d.mu.Unlock()
	if err := d.gateway.state.writeRecord(r); err != nil {
		return err
	}
	if err := device.Settle(); err != nil {
		d.gateway.logOf(r.Volume).Warn("what lies below the device still shows: it is in the way when the host is shut down", "device", r.Device, "error", err)
	}
	d.gateway.link(r.Volume, r.Device, r.Identity.Sequence)
	announce(r.Device)
	d.verify() // it may have been freed before the link was there to be taken away
	d.watch()
	if d.gateway.goesDown() {
		d.hurry()
	}
	return nil
}

// undo takes back what bring has begun. What it cannot take back now is taken back later.
func (g *Gateway) undo(d *disk) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), 20*time.Second)
	defer cancel()
	d.stop(ctx)
	err := d.noteGone()
	if err == nil {
		err = g.finish(ctx, d)
	}
	if err != nil {
		d.set(host.StateDetaching, "it could not be attached, and what was begun is not taken back yet: "+err.Error())
		g.finishLater(d)
	}
	return err
}

// gone reports whether the disk is to be removed, or has been, and was not given up yet.
func (d *disk) gone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.record.Gone
}

// noteGone writes down that the disk is to be removed, whoever finishes that.
func (d *disk) noteGone() error {
	d.mu.Lock()
	d.record.Gone = true
	r := d.record
	d.mu.Unlock()
	return d.gateway.state.writeRecord(r)
}

// noteRemoved forgets a device that is removed: its path is the next one's.
func (d *disk) noteRemoved() {
	d.gateway.unlink(d.record.Volume)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gateway.unname(d.record.Identity.Sequence)
	d.record.Device, d.record.Identity = "", blockdev.Identity{}
}

// finish removes what is left of a disk that is gone, ends its attachment, and forgets it. It may be repeated.
func (g *Gateway) finish(ctx context.Context, d *disk) error {
	if driver := g.drivers[d.record.Via]; driver != nil {
		if err := driver.Detach(ctx, d.noted()); err != nil {
			return fmt.Errorf("what is left of its device is not removed yet: %w", err)
		}
	}
	d.noteRemoved()
	return g.giveUp(ctx, d)
}

// finishLater goes on with that in the background, until it is done.
func (g *Gateway) finishLater(d *disk) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing || d.finishing {
		return // the next gateway does it, or it is under way
	}
	d.finishing = true
	g.resumed.Go(func() {
		for pause := time.Second; clock.Sleep(g.resuming, pause) == nil && !g.tryToFinish(d); pause = min(2*pause, maxFinishPause) {
		}
	})
}

// maxFinishPause is how long a cluster that answers again may have to wait until it is told of what was detached meanwhile.
const maxFinishPause = 10 * time.Second

// tryToFinish reports whether nothing is left to be done.
func (g *Gateway) tryToFinish(d *disk) bool {
	name := d.record.Volume
	ctx, cancel := context.WithTimeout(g.resuming, time.Minute)
	defer cancel()
	done, err := g.turn(ctx, name)
	if err != nil {
		return false
	}
	defer done()
	if g.disk(name) != d {
		return true // somebody else has finished it
	}
	if err := g.finish(ctx, d); err != nil {
		if g.resuming.Err() == nil {
			d.set(host.StateDetaching, err.Error())
		}
		return false
	}
	g.logOf(name).Info("detached")
	return true
}

// giveUp ends the attachment of a disk whose device is gone, and forgets the disk.
func (g *Gateway) giveUp(ctx context.Context, d *disk) error {
	if err := d.noteGone(); err != nil {
		return err
	}
	r := d.record
	if r.Own {
		err := g.api.Detach(ctx, api.Detachment{Volume: storage.VolumeRef{Name: r.Volume}, HolderID: g.hostID, Attachment: r.Attachment,
			Machine: g.machine})
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return fmt.Errorf("its device is removed, but the cluster is not told yet, and gives the volume to nobody else: %w", err)
		}
	}
	g.unlink(r.Volume)
	if err := g.state.removeRecord(r.Volume); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.disks, r.Volume)
	return nil
}

// Detach implements host.Gateway.
func (g *Gateway) Detach(ctx context.Context, name string, force bool) error {
	if d := g.disk(name); d != nil && force {
		d.endResume()
	}
	done, err := g.turn(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	d := g.disk(name)
	if d == nil {
		return nil
	}
	d.mu.Lock()
	before, reason, device, via, gone := d.state, d.reason, d.device, d.record.Via, d.record.Gone
	d.state = host.StateDetaching
	d.mu.Unlock()
	if gone {
		err = g.finish(ctx, d)
	} else if err = g.remove(ctx, d, device, via, force); err != nil {
		d.keep(before, reason)
		return err
	} else {
		d.noteRemoved()
		err = d.noteGone() // before what may take long: a gateway that is started then does not make the device anew
		d.stop(ctx)
		if err == nil {
			err = g.giveUp(ctx, d)
		}
	}
	if err != nil {
		d.set(host.StateDetaching, err.Error())
		g.finishLater(d)
		return storage.E("detach", storage.KindOf(err), "volume "+name, fmt.Errorf("%w; the gateway goes on trying, or try again", err))
	}
	g.logOf(name).Info("detached", "force", force)
	return nil
}

// keep goes on with a disk that could not be detached, and may have failed meanwhile.
func (d *disk) keep(state host.State, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state, d.reason = state, reason
	if d.lost != "" {
		d.state, d.reason = host.StateFailed, d.lost
		d.gateway.logOf(d.record.Volume).Error("the device failed while it was to be detached", "device", d.record.Device, "error", d.lost)
	}
}

func (g *Gateway) remove(ctx context.Context, d *disk, device attach.Device, via host.Via, force bool) error {
	if device != nil {
		return device.Detach(ctx, force)
	}
	driver := g.drivers[via]
	if driver == nil {
		return storage.E("detach", storage.KindUnsupported, "volume "+d.record.Volume, fmt.Errorf("this gateway has no driver %s", via))
	}
	if !force && mayHaveUsers(driver, d.noted()) {
		return storage.E("detach", storage.KindConflict, "volume "+d.record.Volume, errors.New("its device is not served; only force removes it: its users then get errors"))
	}
	return driver.Detach(ctx, d.noted())
}

// mayHaveUsers reports whether a device that is not served may still be open somewhere. One of which there is no device left, because
// the gateway was killed in the middle of a detach, or somebody took it apart, is not.
func mayHaveUsers(driver attach.Driver, r attach.Request) bool {
	d, knows := driver.(interface{ Left(r attach.Request) bool })
	return !knows || d.Left(r)
}

// stop ends the serving of the disk and gives the volume up at this gateway. The device stays.
func (d *disk) stop(ctx context.Context) {
	d.mu.Lock()
	unwatch, watched := d.unwatch, d.watched
	d.unwatch = nil
	d.mu.Unlock()
	if unwatch != nil {
		unwatch()
		<-watched
	}
	d.mu.Lock()
	device, handle := d.device, d.handle
	d.device, d.handle = nil, nil
	d.mu.Unlock()
	if device != nil {
		device.Stop(ctx)
	}
	if handle != nil {
		ctx, cancel := context.WithTimeout(ctx, sessionPatience)
		defer cancel()
		_ = handle.Close(ctx) // what it does not wait for is closed by whoever opens the volume next
	}
}

// sessionPatience is how long a stop waits until the volume's session is closed everywhere. A cluster that answers does it sooner; one
// that does not is to leave time for the rest.
const sessionPatience = 5 * time.Second

// resume goes on with a disk that is written down.
func (g *Gateway) resume(name string) {
	d := g.disk(name)
	if d == nil {
		return
	}
	ctx := d.beginResume()
	defer d.endResume()
	done, err := g.turn(ctx, name)
	if err != nil {
		return // somebody else has the volume's turn: whoever stops the gateway, or detaches it by force
	}
	defer done()
	if g.disk(name) != d || d.parted {
		return // it was detached, or the host goes down
	}
	log := g.logOf(name)
	r := d.record
	// A detach or an attach was interrupted. If the record holds only what was asked for, no device was made, and the caller asks
	// again.
	if r.Gone || r.VolumeID == 0 {
		err := d.noteGone()
		if err == nil {
			err = g.finish(ctx, d)
		}
		if err != nil {
			d.set(host.StateDetaching, "it is to be detached: "+err.Error())
			log.Warn("a volume is not detached yet", "error", err)
			g.finishLater(d)
		}
		return
	}
	begun := time.Now()
	switch err := g.resumeDevice(ctx, d); {
	case err == nil:
	case g.resuming.Err() != nil: // the next gateway begins anew
		return
	case ctx.Err() != nil:
		d.set(host.StateFailed, "it was not found again before it was to be detached by force")
		return
	default:
		log.Error("the device is lost", "device", r.Device, "error", err)
		d.set(host.StateFailed, err.Error())
		return
	}
	log.Info("the device is served again", "device", d.describe().Device, "took", time.Since(begun).Round(time.Millisecond))
}

// beginResume returns the context of an attempt to resume the device. It ends with endResume: a forced detach must not wait
// behind an attempt that may wait for ever.
func (d *disk) beginResume() context.Context {
	ctx, cancel := context.WithCancel(d.gateway.resuming)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.interrupt = cancel
	return ctx
}

func (d *disk) endResume() {
	d.mu.Lock()
	interrupt := d.interrupt
	d.mu.Unlock()
	if interrupt != nil {
		interrupt()
	}
}

func (g *Gateway) resumeDevice(ctx context.Context, d *disk) error {
	driver := g.drivers[d.record.Via]
	if driver == nil {
		return storage.E("resume", storage.KindUnsupported, "volume "+d.record.Volume, fmt.Errorf("this gateway has no driver %s", d.record.Via))
	}
	c, err := g.connected(ctx)
	if err != nil {
		return err
	}
	request := d.request(c)
	lost := d.openAgain(ctx, c) // waits for the cluster as long as it takes
	if lost != nil {
		if ctx.Err() != nil {
			return lost
		}
		request.Open = func(context.Context) (nbd.Export, error) {
			return &lostExport{err: lost, readOnly: d.record.ReadOnly}, nil
		}
	}
	device, err := driver.Resume(ctx, request)
	if lost == nil && makeAnew(d.record, err) {
		device, err = driver.Attach(ctx, request)
	}
	switch {
	case err != nil:
		return err
	case lost != nil: // its requests get errors, instead of waiting for ever
		d.mu.Lock()
		d.device = device
		d.mu.Unlock()
		return lost
	}
	return d.ready(device)
}

// makeAnew reports whether a device that was not found as it was is made again. That is so when the host has rebooted since, or
// when nobody was ever told of the device because the gateway was killed while it made it. Remains of such a device have no users.
func makeAnew(r record, err error) bool {
	return errors.Is(err, storage.ErrNotFound) || err != nil && r.Device == ""
}

// lostExport answers everything with the error with which the volume was lost.
type lostExport struct {
	err      error
	readOnly bool
}

// Info implements nbd.Export.
func (e *lostExport) Info() nbd.ExportInfo {
	return nbd.ExportInfo{SizeBytes: storage.MaxVolumeBytes, ReadOnly: e.readOnly}
}

func (e *lostExport) ReadAt(context.Context, []byte, int64) error  { return e.err }
func (e *lostExport) WriteAt(context.Context, []byte, int64) error { return e.err }
func (e *lostExport) Flush(context.Context) error                  { return e.err }
func (e *lostExport) Trim(context.Context, int64, int64) error     { return e.err }
func (e *lostExport) WriteZeroes(context.Context, int64, int64, bool) error {
	return e.err
}
func (e *lostExport) Status(context.Context, int64, int64, string) ([]nbd.Extent, error) {
	return nil, e.err
}
func (e *lostExport) Cache(context.Context, int64, int64) error { return e.err }
func (e *lostExport) Close(bool) error                          { return nil }

// watchInterval is how often a device is compared with its volume.
const watchInterval = time.Second

// watch begins to watch over the device: it grows with its volume, and fails with it.
func (d *disk) watch() {
	ctx, cancel := context.WithCancel(d.gateway.ctx)
	d.mu.Lock()
	d.unwatch, d.watched, d.refresh = cancel, make(chan struct{}), make(chan chan error)
	device, handle, watched, refresh := d.device, d.handle, d.watched, d.refresh
	d.mu.Unlock()
	d.gateway.wg.Go(func() {
		defer close(watched)
		d.watchUntil(ctx, device, handle, refresh)
	})
}

func (d *disk) watchUntil(ctx context.Context, device attach.Device, handle *volume.Volume, refresh chan chan error) {
	log := d.gateway.logOf(d.record.Volume)
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var asked chan error
		select {
		case <-ctx.Done():
			return
		case <-device.Ended():
			if !d.verify() { // it was taken apart, and what lay below it has gone with it
				return
			}
			const why = "the device was removed by somebody else, or its connection to the kernel was ended"
			if ctx.Err() == nil && d.fail(why+"; detach it") {
				log.Error(why, "device", device.Path())
			}
			return
		case <-tick.C:
		case asked = <-refresh:
		}
		if !d.verify() {
			if asked != nil {
				asked <- nil // the state says it
			}
			return
		}
		if err := handle.Err(); err != nil {
			if d.fail(err.Error()) {
				log.Error("the volume was lost: its device answers errors from now on", "device", device.Path(), "error", err)
			}
			if asked != nil {
				asked <- err
			}
			return
		}
		var err error
		if size := handle.SizeBytes(); size > device.SizeBytes() && d.serves() {
			if err = device.Resize(ctx); err != nil {
				log.Warn("the device does not grow", "device", device.Path(), "size", size, "error", err)
			} else {
				log.Info("the device has grown", "device", device.Path(), "size", size)
			}
		}
		if asked != nil {
			asked <- err
		}
	}
}

// serves reports whether the device is there and is to stay.
func (d *disk) serves() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state == host.StateReady
}

// fail notes why the device is of no use any more, and reports whether that is news. It is not news while the device is being
// detached, unless the detach fails (keep).
func (d *disk) fail(reason string) (news bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch d.state {
	case host.StateReady:
		d.state, d.reason = host.StateFailed, reason
		return true
	case host.StateDetaching:
		d.lost = reason
	}
	return false
}

// Allocated implements host.Gateway.
func (g *Gateway) Allocated(ctx context.Context, name string, attachmentID storage.AttachmentID) (bool, error) {
	const op = "ask for the allocation of"
	subject := "volume " + name
	d := g.disk(name)
	if d == nil {
		return false, storage.E(op, storage.KindNotFound, subject, errors.New("it is not attached here"))
	}
	a := d.verified()
	d.mu.Lock()
	handle := d.handle
	d.mu.Unlock()
	switch {
	case attachmentID != 0 && attachmentID != a.ID:
		return false, storage.E(op, storage.KindNotFound, subject, fmt.Errorf("it is attached here under attachment %d, not %d", a.ID, attachmentID))
	case a.State != host.StateReady || handle == nil:
		return false, storage.E(op, storage.KindUnavailable, subject, fmt.Errorf("its device is %s: %s", a.State, a.Reason))
	}
	return handle.Allocated(ctx)
}

// Refresh implements host.Gateway.
func (g *Gateway) Refresh(ctx context.Context, name string, sizeBytes int64) (host.Attachment, error) {
	d := g.disk(name)
	if d == nil {
		return host.Attachment{}, storage.E("refresh", storage.KindNotFound, "volume "+name, errors.New("it is not attached to this host"))
	}
	c, err := g.connected(ctx)
	if err != nil {
		return host.Attachment{}, err
	}
	v, err := c.remote.Volume(ctx, name)
	if err != nil {
		return host.Attachment{}, err
	}
	if sizeBytes == 0 {
		sizeBytes = v.SizeBytes
	}
	c.remote.Refresh()
	for {
		a := d.verified()
		switch {
		case a.State != host.StateReady:
			return a, storage.E("refresh", storage.KindUnavailable, "volume "+name, fmt.Errorf("its device is %s: %s", a.State, a.Reason))
		case a.SizeBytes >= sizeBytes:
			return a, nil
		case v.SizeBytes < sizeBytes:
			return a, storage.E("refresh", storage.KindInvalid, "volume "+name, fmt.Errorf("the volume has %d bytes, less than %d", v.SizeBytes, sizeBytes))
		}
		if err := d.look(ctx); err != nil {
			return a, err
		}
		_ = clock.Sleep(ctx, 20*time.Millisecond) // the next look sees the end
	}
}

// look has the watch compare the device with its volume now.
func (d *disk) look(ctx context.Context) error {
	d.mu.Lock()
	refresh, watched := d.refresh, d.watched
	d.mu.Unlock()
	answer := make(chan error, 1)
	select {
	case refresh <- answer:
	case <-watched:
		return nil
	case <-ctx.Done():
		return storage.E("refresh", storage.KindCanceled, "volume "+d.describe().Volume, ctx.Err())
	}
	select {
	case err := <-answer:
		return err
	case <-watched:
		return nil
	case <-ctx.Done():
		return storage.E("refresh", storage.KindCanceled, "volume "+d.describe().Volume, ctx.Err())
	}
}

// linkOf returns the path of a volume's link; "" without links.
func (g *Gateway) linkOf(volume string) string {
	if g.config.LinkDir == "" {
		return ""
	}
	return filepath.Join(g.config.LinkDir, volume)
}

// namesDir is where it is written down, for the rules of udev, which volume a device is, by the kernel's number of the device: a file
// NAMES-DIR/SEQUENCE holds the volume's name. No number is used again before the host reboots, and then /run is empty.
func (g *Gateway) namesDir() string { return filepath.Join(filepath.Dir(g.config.Socket), "names") }

// link leads a volume's link to its device, and has the rules of udev know it. What cannot be made costs a warning, not the device.
func (g *Gateway) link(volume, device string, sequence uint64) {
	path := g.linkOf(volume)
	if path == "" {
		return
	}
	err := os.MkdirAll(g.config.LinkDir, 0o755)
	if err == nil {
		_ = os.Remove(path + ".tmp")
		if err = os.Symlink(device, path+".tmp"); err == nil {
			err = os.Rename(path+".tmp", path)
		}
	}
	if err != nil {
		g.env.logger.Warn("the volume has no link", "volume", volume, "link", path, "error", err)
	}
	if sequence == 0 {
		return
	}
	err = os.MkdirAll(g.namesDir(), 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(g.namesDir(), strconv.FormatUint(sequence, 10)), []byte(volume+"\n"), 0o644)
	}
	if err != nil {
		g.env.logger.Warn("udev is not told which volume a device is", "volume", volume, "device", device, "error", err)
	}
}

// announce has the kernel tell udev of the device, now that it is whole and served: rules look at what it lies over, and read it.
func announce(device string) {
	f, err := os.OpenFile(filepath.Join("/sys/block", filepath.Base(device), "uevent"), os.O_WRONLY, 0)
	if err != nil {
		return // a device of a test, or a host without sysfs, which has no udev either
	}
	_, _ = f.WriteString("change") // without it udev knows what it knew
	_ = f.Close()
}

func (g *Gateway) unlink(volume string) {
	if path := g.linkOf(volume); path != "" {
		_ = os.Remove(path) // there may be none
	}
}

// unname takes back what link has told the rules of udev of a device.
func (g *Gateway) unname(sequence uint64) {
	if sequence != 0 {
		_ = os.Remove(filepath.Join(g.namesDir(), strconv.FormatUint(sequence, 10))) // there may be none
	}
}
