package volume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
)

// trunk is what all handles of one volume at one gateway share: the session, the requests in flight, and the gate
// that holds requests back while others' outcomes are unknown.
type trunk struct {
	gateway    *Gateway
	key        trunkKey
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
	throttle   *throttle     // shared with the other trunks of the volume
	attempts   *attemptClock // of reads, and of opening and closing sessions

	sizeBytes atomic.Int64 // grows only
	epoch     atomic.Uint64

	ctx    context.Context // ends when the volume failed for good or was retired
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of this trunk; waited for by shutdown

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
	retirement chan struct{} // not nil while the trunk is being retired; closed when that has ended
}

type trunkKey struct {
	name string
	OpenOptions
}

func (t *trunk) errorf(kind storage.Kind, op, why string) error {
	return storage.E(op, kind, t.subject, errors.New(why))
}

// awaitLocked waits until cond holds or ctx has ended. mu is held when it is called, when it returns, and whenever
// cond is called.
func (t *trunk) awaitLocked(ctx context.Context, cond func() bool) error {
	for !cond() {
		if t.changed == nil {
			t.changed = make(chan struct{})
		}
		changed := t.changed
		t.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (t *trunk) broadcastLocked() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// admitLocked waits until a request of v may start: no orphan's outcome is unknown. This is the gate of I3.
func (t *trunk) admitLocked(ctx context.Context, v *Volume) error {
	if t.orphans > 0 {
		if err := t.awaitLocked(ctx, func() bool { return t.orphans == 0 || t.failure != nil || v.closed || t.draining }); err != nil {
			return storage.E("start request", storage.KindCanceled, t.subject, err)
		}
	}
	switch {
	case t.failure != nil:
		return t.failure
	case v.closed:
		return t.errorf(storage.KindCanceled, "start request", "the handle is closed")
	case t.draining:
		return t.errorf(storage.KindCanceled, "start request", "the gateway is closed")
	}
	return nil
}

// begin starts a mutation.
func (t *trunk) begin(ctx context.Context, v *Volume, r *request) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.admitLocked(ctx, v); err != nil {
		return err
	}
	// Guards I3: endCaller looks for the requests of a context once, when it ends. What began later would hold back
	// nobody, although its caller has left.
	if err := ctx.Err(); err != nil {
		return storage.E("start request", storage.KindCanceled, t.subject, err)
	}
	v.watchLocked(ctx)
	r.volume, r.ctx = v, ctx
	r.refs.Store(1)
	t.started++
	r.start, r.prev, r.next = t.started, t.last, nil
	if t.last == nil {
		t.first = r
	} else {
		t.last.next = r
	}
	t.last = r
	v.active++
	return nil
}

// unref drops one reference of a request and ends it at zero. It reports whether the request was never orphaned, so
// that its memory may be used again.
func (t *trunk) unref(r *request) (reusable bool) {
	if r.refs.Add(-1) > 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.prev == nil {
		t.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		t.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next = nil, nil
	r.volume.active--
	orphaned := r.orphaned.Load()
	if orphaned {
		t.orphans--
	}
	t.broadcastLocked()
	return !orphaned
}

// orphanLocked notes that the request's caller has left: nothing new is sent for it, and nothing starts before its
// outcome is known.
func (t *trunk) orphanLocked(r *request) {
	if r.orphaned.Load() {
		return
	}
	r.orphaned.Store(true)
	t.orphans++
	t.metrics.all.orphans.Inc()
	if !t.watching && t.failure == nil {
		t.watching = true
		t.wg.Go(t.watchOrphans)
	}
}

// watchOrphans closes the session when orphans do not end by themselves.
func (t *trunk) watchOrphans() {
	for {
		ctx, cancel := context.WithTimeout(t.ctx, orphanTimeout)
		t.mu.Lock()
		err := t.awaitLocked(ctx, func() bool { return t.orphans == 0 || t.failure != nil })
		cancel()
		if err == nil || t.ctx.Err() != nil {
			t.watching = false
			t.mu.Unlock()
			return
		}
		s := t.session
		t.mu.Unlock()
		if s != nil {
			t.rotate(s, "orphans", nil)
		}
	}
}

// beginRead starts a read; endRead ends it.
func (t *trunk) beginRead(ctx context.Context, v *Volume) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.admitLocked(ctx, v); err != nil {
		return err
	}
	t.reads++
	v.active++
	return nil
}

func (t *trunk) endRead(v *Volume) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads--
	t.readsAnswered++
	v.active--
	t.broadcastLocked()
}

// flush waits until every mutation that has started is answered.
func (t *trunk) flush(ctx context.Context, v *Volume) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.admitLocked(ctx, v); err != nil {
		return err
	}
	upTo := t.started
	if err := t.awaitLocked(ctx, func() bool { return t.first == nil || t.first.start > upTo }); err != nil {
		return storage.E("flush", storage.KindCanceled, t.subject, err)
	}
	return t.failure
}

// fail makes the volume fail for good, for the first reason given.
func (t *trunk) fail(err error) {
	if t.end(err) {
		t.gateway.forget(t)
		t.gateway.config.Logger.Error("volume failed at this gateway", "volume", t.key.name, "error", err)
	}
}

// end refuses everything from now on with err, and cuts short what is in flight. Only the first call counts.
func (t *trunk) end(err error) (first bool) {
	t.mu.Lock()
	first = t.failure == nil
	if first {
		t.failure = err
		t.current.Store(nil)
		t.broadcastLocked()
	}
	t.mu.Unlock()
	t.cancel()
	return first
}

// ended returns why the volume ended. t.ctx has ended, and failure was set before.
func (t *trunk) ended() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failure
}

// acquire waits until n more bytes may be in flight, of the volume and of the gateway.
func (t *trunk) acquire(ctx context.Context, n int64) error {
	if !t.budget.TryAcquire(n) {
		if err := t.budget.Acquire(ctx, n); err != nil {
			return storage.E("start request", storage.KindCanceled, t.subject, err)
		}
	}
	// Guards against volumes that are stuck without their groups' leaders and hold the whole common budget. A request
	// that finds it full waits for the volume's own share, which comes back as this volume's requests are answered.
	switch {
	case t.own.TryAcquire(n):
	case t.gateway.budget.TryAcquire(n):
		t.common.Add(n)
	default:
		if err := t.own.Acquire(ctx, n); err != nil {
			t.budget.Release(n)
			return storage.E("start request", storage.KindCanceled, t.subject, err)
		}
	}
	t.metrics.all.inFlightBytes.Add(float64(n))
	return nil
}

func (t *trunk) giveBack(n int64) {
	t.metrics.all.inFlightBytes.Sub(float64(n))
	for {
		held := t.common.Load()
		k := min(n, held)
		if t.common.CompareAndSwap(held, held-k) {
			t.gateway.budget.Release(k)
			t.own.Release(n - k)
			break
		}
	}
	t.budget.Release(n)
}

// drain refuses new requests from now on.
func (t *trunk) drain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.draining = true
	t.broadcastLocked()
}

// idleLocked reports whether nothing is in flight and no session is held.
func (t *trunk) idleLocked() bool {
	return t.quietLocked() && t.session == nil && t.forgetting == 0
}

// quietLocked reports whether nothing is in flight.
func (t *trunk) quietLocked() bool { return t.first == nil && t.reads == 0 && t.opening == nil }

// quiesce waits until nothing is in flight and the session is closed in every group.
func (t *trunk) quiesce(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		err := t.awaitLocked(ctx, func() bool {
			return t.failure != nil || t.idleLocked() || t.quietLocked() && t.session != nil && !t.session.closing
		})
		if err != nil || t.failure != nil || t.idleLocked() {
			return err
		}
		s := t.session
		t.mu.Unlock()
		t.rotate(s, "close", nil)
		t.mu.Lock()
	}
}

// shutdown ends the trunk and waits for its goroutines. There are no handles any more, or the volume has failed.
func (t *trunk) shutdown() {
	t.end(t.errorf(storage.KindCanceled, "use", "the volume is closed"))
	t.mu.Lock()
	_ = t.awaitLocked(context.Background(), func() bool { return t.first == nil && t.reads == 0 }) // has no error
	t.mu.Unlock()
	t.wg.Wait()
}
