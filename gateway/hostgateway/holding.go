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

// holding is a volume that the host has, with its device. What changes it has the volume's turn (Gateway.turn); the lock is for
// those who look.
type holding struct {
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
	finishing bool          // something in the background sees to it that the holding is given up; guarded by Gateway.mu
	// interrupt ends an attempt to resume the device, which waits for the cluster for as long as that takes; nil: none is made.
	interrupt context.CancelFunc
	parted    bool // its device was taken apart because the host goes down; guarded by the volume's turn
}

// describe returns what others see.
func (h *holding) describe() host.Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.record
	if h.foreign {
		r.Device, r.Identity = "", blockdev.Identity{}
	}
	a := host.Attachment{Volume: r.Volume, VolumeID: r.VolumeID, ID: r.Attachment, Generation: r.Generation, Access: r.Access,
		ReadOnly: r.ReadOnly, Via: r.Via, Device: r.Device, Identity: r.Identity, State: h.state, Reason: h.reason, Since: r.Since}
	if h.device != nil && !h.foreign {
		a.SizeBytes = h.device.SizeBytes()
	}
	if link := h.gateway.linkOf(r.Volume); link != "" && r.Device != "" {
		a.Link = link
	}
	return a
}

// verified returns what others see, of a device that was looked at once more: its path may have become another's.
func (h *holding) verified() host.Attachment {
	h.verify()
	return h.describe()
}

// verify notes that the device at the path is not the holding's any more. That is asked again and again, because nobody is told
// when a loop device is freed, or an NBD device disconnected, and its number given to the next who asks. It reports whether the
// path may be used.
func (h *holding) verify() bool {
	h.mu.Lock()
	device, state, foreign := h.device, h.state, h.foreign
	h.mu.Unlock()
	if device == nil || state != host.StateReady {
		return !foreign
	}
	err := device.Check()
	if err == nil {
		return true
	}
	h.mu.Lock()
	reason := err.Error() + "; detach the volume, and attach it again"
	news := h.state == host.StateReady && h.device == device
	switch {
	case news:
		h.state, h.reason, h.foreign = host.StateFailed, reason, true
	case h.state == host.StateDetaching: // matters if nothing comes of the detach
		h.lost, h.foreign = reason, true
	}
	h.mu.Unlock()
	if news {
		h.gateway.unlink(h.record.Volume)
		h.gateway.logOf(h.record.Volume).Error("the volume has lost its device, whose path may be another's by now", "device", device.Path(), "error", err)
	}
	return false
}

func (h *holding) set(s host.State, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.reason = s, reason
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
	h := g.holding(q.Volume)
	if h != nil && h.gone() { // of an attachment that has ended here, and that the cluster was not told of
		if err := g.finish(ctx, h); err != nil {
			return host.Attachment{}, storage.E("attach", storage.KindOf(err), "volume "+q.Volume, fmt.Errorf("what it was attached as before is not ended yet: %w", err))
		}
		h = nil
	}
	if h != nil {
		h.verify()
		if err := h.sameTerms(q); err != nil {
			return host.Attachment{}, err
		}
		return h.describe(), nil
	}
	driver, via, err := g.driver(q.Via)
	if err != nil {
		return host.Attachment{}, err
	}
	c, err := g.connected(ctx)
	if err != nil {
		return host.Attachment{}, err
	}
	h = &holding{gateway: g, state: host.StateConnecting, record: record{Volume: q.Volume, Attachment: q.AttachmentID,
		Own: q.AttachmentID == 0, Access: q.Access, ReadOnly: q.ReadOnly, Via: via}}
	if err := g.add(h); err != nil {
		return host.Attachment{}, err
	}
	if err := g.bring(ctx, c, h, driver, q); err != nil {
		return host.Attachment{}, errors.Join(err, g.undo(h))
	}
	a := h.describe()
	g.logOf(q.Volume).Info("attached", "device", a.Device, "via", a.Via, "access", a.Access, "attachment", a.ID, "generation", a.Generation)
	return a, nil
}

// sameTerms returns nil if the holding is what is asked for, and can be used.
func (h *holding) sameTerms(q host.Request) error {
	a := h.describe()
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

// add writes the holding down before anything is done for it.
func (g *Gateway) add(h *holding) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing {
		return errClosed
	}
	if g.down {
		return storage.E("attach", storage.KindUnavailable, "volume "+h.record.Volume, errors.New(whyDown))
	}
	if err := g.state.writeRecord(h.record); err != nil {
		return err
	}
	g.holdings[h.record.Volume] = h
	return nil
}

// bring takes a new holding from its record to a device.
func (g *Gateway) bring(ctx context.Context, c *connection, h *holding, driver attach.Driver, q host.Request) error {
	at, err := g.attachment(ctx, q)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.record.VolumeID, h.record.Attachment, h.record.Generation, h.record.Since = at.Volume, at.ID, at.Generation, at.Since
	r := h.record
	h.mu.Unlock()
	if err := g.state.writeRecord(r); err != nil {
		return err
	}
	if err := h.open(ctx, c); err != nil {
		return err
	}
	device, err := driver.Attach(ctx, h.request(c))
	if err != nil {
		return err
	}
	return h.ready(device)
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
func (h *holding) open(ctx context.Context, c *connection) error {
	v, err := h.openVolume(ctx, c)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.handle = v
	h.mu.Unlock()
	return nil
}

// silence is how long a resuming gateway waits for the sessions of another machine, or of an earlier boot of this one, to end. It
// is longer than the catalog keeps a session that no report names (control.Config.SessionTimeout). What goes on after that is
// alive.
const silence = 45 * time.Second

// openAgain opens the volume of a holding that is written down.
func (h *holding) openAgain(ctx context.Context, c *connection) error {
	for until := time.Now().Add(silence); ; {
		err := h.open(ctx, c)
		if !errors.Is(err, storage.ErrConflict) || time.Now().After(until) {
			return err
		}
		h.set(host.StateConnecting, err.Error())
		if clock.Sleep(ctx, time.Second) != nil {
			return err
		}
	}
}

func (h *holding) openVolume(ctx context.Context, c *connection) (*volume.Volume, error) {
	h.mu.Lock()
	r := h.record
	h.mu.Unlock()
	return c.volume.Open(ctx, r.Volume, volume.OpenOptions{ReadOnly: r.ReadOnly, Attachment: r.Attachment})
}

// noted returns what is known of the holding's device. What was noted before the host was started says nothing any more.
func (h *holding) noted() attach.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := attach.Request{Name: h.record.Volume, ReadOnly: h.record.ReadOnly}
	if h.record.Boot != "" && h.record.Boot == h.gateway.boot() && !h.foreign {
		r.Device, r.Identity = h.record.Device, h.record.Identity
	}
	return r
}

// request asks a driver for the holding's device.
func (h *holding) request(c *connection) attach.Request {
	r := h.noted()
	r.Open = func(ctx context.Context) (nbd.Export, error) {
		v, err := h.openVolume(ctx, c)
		if err != nil {
			return nil, err
		}
		return export.Attached(v), nil
	}
	return r
}

// ready notes that the device is served, and watches over it.
func (h *holding) ready(device attach.Device) error {
	h.mu.Lock()
	if before := h.record.Identity.Sequence; before != device.Identity().Sequence {
		h.gateway.unname(before)
	}
	h.device, h.record.Device, h.record.Identity, h.foreign = device, device.Path(), device.Identity(), false
	h.record.Boot = h.gateway.boot()
	h.state, h.reason = host.StateReady, ""
	r := h.record
	h.mu.Unlock()
	if err := h.gateway.state.writeRecord(r); err != nil {
		return err
	}
	if err := device.Settle(); err != nil {
		h.gateway.logOf(r.Volume).Warn("what lies below the device still shows: it is in the way when the host is shut down", "device", r.Device, "error", err)
	}
	h.gateway.link(r.Volume, r.Device, r.Identity.Sequence)
	announce(r.Device)
	h.verify() // it may have been freed before the link was there to be taken away
	h.watch()
	if h.gateway.goesDown() {
		h.hurry()
	}
	return nil
}

// undo takes back what bring has begun. What it cannot take back now is taken back later.
func (g *Gateway) undo(h *holding) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), 20*time.Second)
	defer cancel()
	h.stop(ctx)
	err := h.noteGone()
	if err == nil {
		err = g.finish(ctx, h)
	}
	if err != nil {
		h.set(host.StateDetaching, "it could not be attached, and what was begun is not taken back yet: "+err.Error())
		g.finishLater(h)
	}
	return err
}

// gone reports whether the holding is to be removed, or has been, and was not given up yet.
func (h *holding) gone() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record.Gone
}

// noteGone writes down that the holding is to be removed, whoever finishes that.
func (h *holding) noteGone() error {
	h.mu.Lock()
	h.record.Gone = true
	r := h.record
	h.mu.Unlock()
	return h.gateway.state.writeRecord(r)
}

// noteRemoved forgets a device that is removed: its path is the next one's.
func (h *holding) noteRemoved() {
	h.gateway.unlink(h.record.Volume)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gateway.unname(h.record.Identity.Sequence)
	h.record.Device, h.record.Identity = "", blockdev.Identity{}
}

// finish removes what is left of a holding that is gone, ends its attachment, and forgets it. It may be repeated.
func (g *Gateway) finish(ctx context.Context, h *holding) error {
	if driver := g.drivers[h.record.Via]; driver != nil {
		if err := driver.Detach(ctx, h.noted()); err != nil {
			return fmt.Errorf("what is left of its device is not removed yet: %w", err)
		}
	}
	h.noteRemoved()
	return g.giveUp(ctx, h)
}

// finishLater goes on with that in the background, until it is done.
func (g *Gateway) finishLater(h *holding) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing || h.finishing {
		return // the next gateway does it, or it is under way
	}
	h.finishing = true
	g.resumed.Go(func() {
		for pause := time.Second; clock.Sleep(g.resuming, pause) == nil && !g.tryToFinish(h); pause = min(2*pause, maxFinishPause) {
		}
	})
}

// maxFinishPause is how long a cluster that answers again may have to wait until it is told of what was detached meanwhile.
const maxFinishPause = 10 * time.Second

// tryToFinish reports whether nothing is left to be done.
func (g *Gateway) tryToFinish(h *holding) bool {
	name := h.record.Volume
	ctx, cancel := context.WithTimeout(g.resuming, time.Minute)
	defer cancel()
	done, err := g.turn(ctx, name)
	if err != nil {
		return false
	}
	defer done()
	if g.holding(name) != h {
		return true // somebody else has finished it
	}
	if err := g.finish(ctx, h); err != nil {
		if g.resuming.Err() == nil {
			h.set(host.StateDetaching, err.Error())
		}
		return false
	}
	g.logOf(name).Info("detached")
	return true
}

// giveUp ends the attachment of a holding whose device is gone, and forgets the holding.
func (g *Gateway) giveUp(ctx context.Context, h *holding) error {
	if err := h.noteGone(); err != nil {
		return err
	}
	r := h.record
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
	delete(g.holdings, r.Volume)
	return nil
}

// Detach implements host.Gateway.
func (g *Gateway) Detach(ctx context.Context, name string, force bool) error {
	if h := g.holding(name); h != nil && force {
		h.endResume()
	}
	done, err := g.turn(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	h := g.holding(name)
	if h == nil {
		return nil
	}
	h.mu.Lock()
	before, reason, device, via, gone := h.state, h.reason, h.device, h.record.Via, h.record.Gone
	h.state = host.StateDetaching
	h.mu.Unlock()
	if gone {
		err = g.finish(ctx, h)
	} else if err = g.remove(ctx, h, device, via, force); err != nil {
		h.keep(before, reason)
		return err
	} else {
		h.noteRemoved()
		err = h.noteGone() // before what may take long: a gateway that is started then does not make the device anew
		h.stop(ctx)
		if err == nil {
			err = g.giveUp(ctx, h)
		}
	}
	if err != nil {
		h.set(host.StateDetaching, err.Error())
		g.finishLater(h)
		return storage.E("detach", storage.KindOf(err), "volume "+name, fmt.Errorf("%w; the gateway goes on trying, or try again", err))
	}
	g.logOf(name).Info("detached", "force", force)
	return nil
}

// keep goes on with a holding that could not be detached, and may have failed meanwhile.
func (h *holding) keep(state host.State, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.reason = state, reason
	if h.lost != "" {
		h.state, h.reason = host.StateFailed, h.lost
		h.gateway.logOf(h.record.Volume).Error("the device failed while it was to be detached", "device", h.record.Device, "error", h.lost)
	}
}

func (g *Gateway) remove(ctx context.Context, h *holding, device attach.Device, via host.Via, force bool) error {
	if device != nil {
		return device.Detach(ctx, force)
	}
	driver := g.drivers[via]
	if driver == nil {
		return storage.E("detach", storage.KindUnsupported, "volume "+h.record.Volume, fmt.Errorf("this gateway has no driver %s", via))
	}
	if !force && mayHaveUsers(driver, h.noted()) {
		return storage.E("detach", storage.KindConflict, "volume "+h.record.Volume, errors.New("its device is not served; only force removes it: its users then get errors"))
	}
	return driver.Detach(ctx, h.noted())
}

// mayHaveUsers reports whether a device that is not served may still be open somewhere. One of which there is no device left, because
// the gateway was killed in the middle of a detach, or somebody took it apart, is not.
func mayHaveUsers(driver attach.Driver, r attach.Request) bool {
	d, knows := driver.(interface{ Left(r attach.Request) bool })
	return !knows || d.Left(r)
}

// stop ends the serving of the holding and gives the volume up at this gateway. The device stays.
func (h *holding) stop(ctx context.Context) {
	h.mu.Lock()
	unwatch, watched := h.unwatch, h.watched
	h.unwatch = nil
	h.mu.Unlock()
	if unwatch != nil {
		unwatch()
		<-watched
	}
	h.mu.Lock()
	device, handle := h.device, h.handle
	h.device, h.handle = nil, nil
	h.mu.Unlock()
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

// resume goes on with a holding that is written down.
func (g *Gateway) resume(name string) {
	h := g.holding(name)
	if h == nil {
		return
	}
	ctx := h.beginResume()
	defer h.endResume()
	done, err := g.turn(ctx, name)
	if err != nil {
		return // somebody else has the volume's turn: whoever stops the gateway, or detaches it by force
	}
	defer done()
	if g.holding(name) != h || h.parted {
		return // it was detached, or the host goes down
	}
	log := g.logOf(name)
	r := h.record
	// A detach or an attach was interrupted. If the record holds only what was asked for, no device was made, and the caller asks
	// again.
	if r.Gone || r.VolumeID == 0 {
		err := h.noteGone()
		if err == nil {
			err = g.finish(ctx, h)
		}
		if err != nil {
			h.set(host.StateDetaching, "it is to be detached: "+err.Error())
			log.Warn("a volume is not detached yet", "error", err)
			g.finishLater(h)
		}
		return
	}
	begun := time.Now()
	switch err := g.resumeDevice(ctx, h); {
	case err == nil:
	case g.resuming.Err() != nil: // the next gateway begins anew
		return
	case ctx.Err() != nil:
		h.set(host.StateFailed, "it was not found again before it was to be detached by force")
		return
	default:
		log.Error("the device is lost", "device", r.Device, "error", err)
		h.set(host.StateFailed, err.Error())
		return
	}
	log.Info("the device is served again", "device", h.describe().Device, "took", time.Since(begun).Round(time.Millisecond))
}

// beginResume returns the context of an attempt to resume the device. It ends with endResume: a forced detach must not wait
// behind an attempt that may wait for ever.
func (h *holding) beginResume() context.Context {
	ctx, cancel := context.WithCancel(h.gateway.resuming)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.interrupt = cancel
	return ctx
}

func (h *holding) endResume() {
	h.mu.Lock()
	interrupt := h.interrupt
	h.mu.Unlock()
	if interrupt != nil {
		interrupt()
	}
}

func (g *Gateway) resumeDevice(ctx context.Context, h *holding) error {
	driver := g.drivers[h.record.Via]
	if driver == nil {
		return storage.E("resume", storage.KindUnsupported, "volume "+h.record.Volume, fmt.Errorf("this gateway has no driver %s", h.record.Via))
	}
	c, err := g.connected(ctx)
	if err != nil {
		return err
	}
	request := h.request(c)
	lost := h.openAgain(ctx, c) // waits for the cluster as long as it takes
	if lost != nil {
		if ctx.Err() != nil {
			return lost
		}
		request.Open = func(context.Context) (nbd.Export, error) {
			return &lostExport{err: lost, readOnly: h.record.ReadOnly}, nil
		}
	}
	device, err := driver.Resume(ctx, request)
	if lost == nil && makeAnew(h.record, err) {
		device, err = driver.Attach(ctx, request)
	}
	switch {
	case err != nil:
		return err
	case lost != nil: // its requests get errors, instead of waiting for ever
		h.mu.Lock()
		h.device = device
		h.mu.Unlock()
		return lost
	}
	return h.ready(device)
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
func (h *holding) watch() {
	ctx, cancel := context.WithCancel(h.gateway.ctx)
	h.mu.Lock()
	h.unwatch, h.watched, h.refresh = cancel, make(chan struct{}), make(chan chan error)
	device, handle, watched, refresh := h.device, h.handle, h.watched, h.refresh
	h.mu.Unlock()
	h.gateway.wg.Go(func() {
		defer close(watched)
		h.watchUntil(ctx, device, handle, refresh)
	})
}

func (h *holding) watchUntil(ctx context.Context, device attach.Device, handle *volume.Volume, refresh chan chan error) {
	log := h.gateway.logOf(h.record.Volume)
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var asked chan error
		select {
		case <-ctx.Done():
			return
		case <-device.Ended():
			if !h.verify() { // it was taken apart, and what lay below it has gone with it
				return
			}
			const why = "the device was removed by somebody else, or its connection to the kernel was ended"
			if ctx.Err() == nil && h.fail(why+"; detach it") {
				log.Error(why, "device", device.Path())
			}
			return
		case <-tick.C:
		case asked = <-refresh:
		}
		if !h.verify() {
			if asked != nil {
				asked <- nil // the state says it
			}
			return
		}
		if err := handle.Err(); err != nil {
			if h.fail(err.Error()) {
				log.Error("the volume was lost: its device answers errors from now on", "device", device.Path(), "error", err)
			}
			if asked != nil {
				asked <- err
			}
			return
		}
		var err error
		if size := handle.SizeBytes(); size > device.SizeBytes() && h.serves() {
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
func (h *holding) serves() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state == host.StateReady
}

// fail notes why the device is of no use any more, and reports whether that is news. It is not news while the device is being
// detached, unless the detach fails (keep).
func (h *holding) fail(reason string) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.state {
	case host.StateReady:
		h.state, h.reason = host.StateFailed, reason
		return true
	case host.StateDetaching:
		h.lost = reason
	}
	return false
}

// Allocated implements host.Gateway.
func (g *Gateway) Allocated(ctx context.Context, name string, attachmentID storage.AttachmentID) (bool, error) {
	const op = "ask for the allocation of"
	subject := "volume " + name
	h := g.holding(name)
	if h == nil {
		return false, storage.E(op, storage.KindNotFound, subject, errors.New("it is not attached here"))
	}
	a := h.verified()
	h.mu.Lock()
	handle := h.handle
	h.mu.Unlock()
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
	h := g.holding(name)
	if h == nil {
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
		a := h.verified()
		switch {
		case a.State != host.StateReady:
			return a, storage.E("refresh", storage.KindUnavailable, "volume "+name, fmt.Errorf("its device is %s: %s", a.State, a.Reason))
		case a.SizeBytes >= sizeBytes:
			return a, nil
		case v.SizeBytes < sizeBytes:
			return a, storage.E("refresh", storage.KindInvalid, "volume "+name, fmt.Errorf("the volume has %d bytes, less than %d", v.SizeBytes, sizeBytes))
		}
		if err := h.look(ctx); err != nil {
			return a, err
		}
		_ = clock.Sleep(ctx, 20*time.Millisecond) // the next look sees the end
	}
}

// look has the watch compare the device with its volume now.
func (h *holding) look(ctx context.Context) error {
	h.mu.Lock()
	refresh, watched := h.refresh, h.watched
	h.mu.Unlock()
	answer := make(chan error, 1)
	select {
	case refresh <- answer:
	case <-watched:
		return nil
	case <-ctx.Done():
		return storage.E("refresh", storage.KindCanceled, "volume "+h.describe().Volume, ctx.Err())
	}
	select {
	case err := <-answer:
		return err
	case <-watched:
		return nil
	case <-ctx.Done():
		return storage.E("refresh", storage.KindCanceled, "volume "+h.describe().Volume, ctx.Err())
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
