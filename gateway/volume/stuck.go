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
	t := v.trunk
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.impatient || t.failure != nil || t.draining {
		return
	}
	t.impatient = true
	t.wg.Go(func() { t.failIfStuck(patience, why) })
}

// failIfStuck looks a few times in patience.
func (t *trunk) failIfStuck(patience time.Duration, why string) {
	tick := time.NewTicker(max(patience/16, time.Millisecond))
	defer tick.Stop()
	now := time.Now()
	waits := waits{mutation: now, read: now}
	for {
		t.mu.Lock()
		waits.lookLocked(t, now)
		t.mu.Unlock()
		if now.Sub(waits.mutation) >= patience || now.Sub(waits.read) >= patience {
			t.fail(t.errorf(storage.KindUnavailable, "use", why))
			return
		}
		select {
		case now = <-tick.C:
		case <-t.ctx.Done():
			return
		}
	}
}

// waits is what failIfStuck has seen of a trunk.
type waits struct {
	oldest   uint64    // number of the oldest mutation in flight; 0: there was none
	reads    bool      // there were some in flight
	answered uint64    // trunk.readsAnswered
	mutation time.Time // when oldest was another one last
	read     time.Time // when answered was another number last, or there were no reads before
}

// lookLocked compares the trunk with how it was. Its lock is held.
func (w *waits) lookLocked(t *trunk, now time.Time) {
	oldest := uint64(0)
	if t.first != nil {
		oldest = t.first.start
	}
	if oldest == 0 || oldest != w.oldest {
		w.oldest, w.mutation = oldest, now
	}
	if !w.reads || t.readsAnswered != w.answered {
		w.answered, w.read = t.readsAnswered, now
	}
	w.reads = t.reads > 0
}
