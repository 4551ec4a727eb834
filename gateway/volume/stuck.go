package volume

import (
	"time"

	storage "github.com/storaged/storaged"
)

// FailIfStuck makes the volume fail for good, at every handle of this gateway, as soon as it is stuck for as long as patience,
// counted from now. It is stuck while the oldest mutation is not answered, or while there are reads and none of them is answered.
// This is for a host that goes down, whose users nobody will serve any more: they get an error (KindUnavailable, with why), instead
// of waiting. A request that waits for the volume's limits is not stuck. Another call has no effect.
func (v *Volume) FailIfStuck(patience time.Duration, why string) {
	d := v.device
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.impatient || d.failure != nil || d.draining {
		return
	}
	d.impatient = true
	d.wg.Go(func() { d.failIfStuck(patience, why) })
}

// failIfStuck looks a few times in patience.
func (d *device) failIfStuck(patience time.Duration, why string) {
	tick := time.NewTicker(max(patience/16, time.Millisecond))
	defer tick.Stop()
	now := time.Now()
	waits := waits{mutation: now, read: now}
	for {
		d.mu.Lock()
		waits.lookLocked(d, now)
		d.mu.Unlock()
		if now.Sub(waits.mutation) >= patience || now.Sub(waits.read) >= patience {
			d.fail(d.errorf(storage.KindUnavailable, "use", why))
			return
		}
		select {
		case now = <-tick.C:
		case <-d.ctx.Done():
			return
		}
	}
}

// waits is what failIfStuck has seen of a device.
type waits struct {
	oldest   uint64    // number of the oldest mutation in flight; 0: there was none
	reads    bool      // there were some in flight
	answered uint64    // device.readsAnswered
	mutation time.Time // when oldest was another one last
	read     time.Time // when answered was another number last, or there were no reads before
}

// lookLocked compares the device with how it was. Its lock is held.
func (w *waits) lookLocked(d *device, now time.Time) {
	oldest := uint64(0)
	if d.first != nil {
		oldest = d.first.start
	}
	if oldest == 0 || oldest != w.oldest {
		w.oldest, w.mutation = oldest, now
	}
	if !w.reads || d.readsAnswered != w.answered {
		w.answered, w.read = d.readsAnswered, now
	}
	w.reads = d.reads > 0
}
