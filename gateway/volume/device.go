package volume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
)

// device is what all handles of one volume at one gateway share: the session, the requests in flight, and the gate
// that holds requests back while others' outcomes are unknown.
type device struct {
	gateway    *Gateway
	key        deviceKey
	subject    string // of errors
	id         storage.VolumeID
	generation storage.Generation  // never changes: a volume of a newer generation is not ours any more
	attachment storage.Attachment  // never changes; what the sessions are opened under
	stripes    []int               // extent i lives in groups[stripes[i % len(stripes)]]
	groups     []storage.GroupID   // distinct
	placement  []storage.GroupID   // as the catalog gave it
	budget     *semaphore.Weighted // all of the volume's bytes in flight
	own        *semaphore.Weighted // volumeShareBytes, which no other volume can take
	clearers   *semaphore.Weighted // ClearParallel, but for the one that each request has by right
	common     atomic.Int64        // what the volume holds of gateway.budget; the rest of what is in flight is of own
	metrics    *volumeMetrics
	throttle   *throttle     // shared with the other devices of the volume
	attempts   *attemptClock // of reads, and of opening and closing sessions

	sizeBytes atomic.Int64 // grows only
	epoch     atomic.Uint64

	ctx    context.Context // ends when the volume failed for good or was retired
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of this device; waited for by shutdown

	// current is session while requests may use it, so that they find it without the lock.
	current atomic.Pointer[session]

	mu          sync.Mutex
	draining    bool     // the gateway is being closed: nothing new starts
	failure     error    // why the volume failed for good; set once, before ctx ends
	first, last *request // mutations in flight, in the order of their start
	started     uint64   // number of the newest
	reads       int      // reads in flight
	impatient   bool     // FailIfStuck was called
	// readsAnswered counts reads that have ended, for failIfStuck.
	readsAnswered uint64
	orphans       int           // requests in the list that are orphaned; while > 0 no request starts
	watching      bool          // a goroutine watches over the orphans
	changed       chan struct{} // if not nil, closed (and set to nil) at the next change of anything above
	session       *session      // nil: none, or being opened
	opening       *opening      // nil: none is being opened
	forgetting    int           // closed sessions that the catalog is being told of
	fresh         SessionInfo   // the catalog's session that no group has heard of yet; ID 0: none

	// Guarded by gateway.mu.
	refs       int           // handles
	retirement chan struct{} // not nil while the device is being retired; closed when that has ended
}

type deviceKey struct {
	name string
	OpenOptions
}

func (d *device) errorf(kind storage.Kind, op, why string) error {
	return storage.E(op, kind, d.subject, errors.New(why))
}

// awaitLocked waits until cond holds or ctx has ended. mu is held when it is called, when it returns, and whenever
// cond is called.
func (d *device) awaitLocked(ctx context.Context, cond func() bool) error {
	for !cond() {
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		d.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (d *device) broadcastLocked() {
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// admitLocked waits until a request of v may start: no orphan's outcome is unknown. This is the gate of I3.
func (d *device) admitLocked(ctx context.Context, v *Volume) error {
	if d.orphans > 0 {
		if err := d.awaitLocked(ctx, func() bool { return d.orphans == 0 || d.failure != nil || v.closed || d.draining }); err != nil {
			return storage.E("start request", storage.KindCanceled, d.subject, err)
		}
	}
	switch {
	case d.failure != nil:
		return d.failure
	case v.closed:
		return d.errorf(storage.KindCanceled, "start request", "the handle is closed")
	case d.draining:
		return d.errorf(storage.KindCanceled, "start request", "the gateway is closed")
	}
	return nil
}

// begin starts a mutation.
func (d *device) begin(ctx context.Context, v *Volume, r *request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.admitLocked(ctx, v); err != nil {
		return err
	}
	// Guards I3: endCaller looks for the requests of a context once, when it ends. What began later would hold back
	// nobody, although its caller has left.
	if err := ctx.Err(); err != nil {
		return storage.E("start request", storage.KindCanceled, d.subject, err)
	}
	v.watchLocked(ctx)
	r.volume, r.ctx = v, ctx
	r.refs.Store(1)
	d.started++
	r.start, r.prev, r.next = d.started, d.last, nil
	if d.last == nil {
		d.first = r
	} else {
		d.last.next = r
	}
	d.last = r
	v.active++
	return nil
}

// unref drops one reference of a request and ends it at zero. It reports whether the request was never orphaned, so
// that its memory may be used again.
func (d *device) unref(r *request) (reusable bool) {
	if r.refs.Add(-1) > 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.prev == nil {
		d.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		d.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next = nil, nil
	r.volume.active--
	orphaned := r.orphaned.Load()
	if orphaned {
		d.orphans--
	}
	d.broadcastLocked()
	return !orphaned
}

// orphanLocked notes that the request's caller has left: nothing new is sent for it, and nothing starts before its
// outcome is known.
func (d *device) orphanLocked(r *request) {
	if r.orphaned.Load() {
		return
	}
	r.orphaned.Store(true)
	d.orphans++
	d.metrics.all.orphans.Inc()
	if !d.watching && d.failure == nil {
		d.watching = true
		d.wg.Go(d.watchOrphans)
	}
}

// watchOrphans closes the session when orphans do not end by themselves.
func (d *device) watchOrphans() {
	for {
		ctx, cancel := context.WithTimeout(d.ctx, orphanTimeout)
		d.mu.Lock()
		err := d.awaitLocked(ctx, func() bool { return d.orphans == 0 || d.failure != nil })
		cancel()
		if err == nil || d.ctx.Err() != nil {
			d.watching = false
			d.mu.Unlock()
			return
		}
		s := d.session
		d.mu.Unlock()
		if s != nil {
			d.rotate(s, "orphans", nil)
		}
	}
}

// beginRead starts a read; endRead ends it.
func (d *device) beginRead(ctx context.Context, v *Volume) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.admitLocked(ctx, v); err != nil {
		return err
	}
	d.reads++
	v.active++
	return nil
}

func (d *device) endRead(v *Volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads--
	d.readsAnswered++
	v.active--
	d.broadcastLocked()
}

// flush waits until every mutation that has started is answered.
func (d *device) flush(ctx context.Context, v *Volume) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.admitLocked(ctx, v); err != nil {
		return err
	}
	upTo := d.started
	if err := d.awaitLocked(ctx, func() bool { return d.first == nil || d.first.start > upTo }); err != nil {
		return storage.E("flush", storage.KindCanceled, d.subject, err)
	}
	return d.failure
}

// fail makes the volume fail for good, for the first reason given.
func (d *device) fail(err error) {
	if d.end(err) {
		d.gateway.forget(d)
		d.gateway.config.Logger.Error("volume failed at this gateway", "volume", d.key.name, "error", err)
	}
}

// end refuses everything from now on with err, and cuts short what is in flight. Only the first call counts.
func (d *device) end(err error) (first bool) {
	d.mu.Lock()
	first = d.failure == nil
	if first {
		d.failure = err
		d.current.Store(nil)
		d.broadcastLocked()
	}
	d.mu.Unlock()
	d.cancel()
	return first
}

// ended returns why the volume ended. d.ctx has ended, and failure was set before.
func (d *device) ended() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failure
}

// acquire waits until n more bytes may be in flight, of the volume and of the gateway.
func (d *device) acquire(ctx context.Context, n int64) error {
	if !d.budget.TryAcquire(n) {
		if err := d.budget.Acquire(ctx, n); err != nil {
			return storage.E("start request", storage.KindCanceled, d.subject, err)
		}
	}
	// Guards against volumes that are stuck without their groups' leaders and hold the whole common budget. A request
	// that finds it full waits for the volume's own share, which comes back as this volume's requests are answered.
	switch {
	case d.own.TryAcquire(n):
	case d.gateway.budget.TryAcquire(n):
		d.common.Add(n)
	default:
		if err := d.own.Acquire(ctx, n); err != nil {
			d.budget.Release(n)
			return storage.E("start request", storage.KindCanceled, d.subject, err)
		}
	}
	d.metrics.all.inFlightBytes.Add(float64(n))
	return nil
}

func (d *device) giveBack(n int64) {
	d.metrics.all.inFlightBytes.Sub(float64(n))
	for {
		held := d.common.Load()
		k := min(n, held)
		if d.common.CompareAndSwap(held, held-k) {
			d.gateway.budget.Release(k)
			d.own.Release(n - k)
			break
		}
	}
	d.budget.Release(n)
}

// drain refuses new requests from now on.
func (d *device) drain() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.draining = true
	d.broadcastLocked()
}

// idleLocked reports whether nothing is in flight and no session is held.
func (d *device) idleLocked() bool {
	return d.quietLocked() && d.session == nil && d.forgetting == 0
}

// quietLocked reports whether nothing is in flight.
func (d *device) quietLocked() bool { return d.first == nil && d.reads == 0 && d.opening == nil }

// quiesce waits until nothing is in flight and the session is closed in every group.
func (d *device) quiesce(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		err := d.awaitLocked(ctx, func() bool {
			return d.failure != nil || d.idleLocked() || d.quietLocked() && d.session != nil && !d.session.closing
		})
		if err != nil || d.failure != nil || d.idleLocked() {
			return err
		}
		s := d.session
		d.mu.Unlock()
		d.rotate(s, "close", nil)
		d.mu.Lock()
	}
}

// shutdown ends the device and waits for its goroutines. There are no handles any more, or the volume has failed.
func (d *device) shutdown() {
	d.end(d.errorf(storage.KindCanceled, "use", "the volume is closed"))
	d.mu.Lock()
	_ = d.awaitLocked(context.Background(), func() bool { return d.first == nil && d.reads == 0 }) // has no error
	d.mu.Unlock()
	d.wg.Wait()
}
