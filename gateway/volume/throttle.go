package volume

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	storage "github.com/storaged/storaged"
)

// throttle holds the users of one volume at one gateway, on whatever terms they have it open, to the volume's limits:
// token buckets. Requests wait before they begin, in the order they came; none fails. While they wait nothing of them is
// in flight, so that they hold back nobody who does not come after them: no flush, no retirement, no orphan. How many
// wait is bounded by those who ask: an NBD connection has a bounded number of requests and bytes under way.
type throttle struct {
	limited atomic.Bool // there is a limit; without one requests pass without a lock

	// turn is held by the one request that waits for the buckets; the others wait for the turn, first come, first served.
	// So a change of the limits reaches all of them: nobody has a reservation under the old ones but the first.
	turn chan struct{} // capacity 1

	mu              sync.Mutex // guards what follows
	revision        uint64     // of the volume, when it had the limits
	limits          storage.VolumeLimits
	requests, bytes *rate.Limiter // nil: no limit
	changed         chan struct{} // closed, and replaced, when the limits change

	refs int // trunks; guarded by gateway.mu
}

func newThrottle() *throttle {
	return &throttle{turn: make(chan struct{}, 1), changed: make(chan struct{})}
}

// burstFor is how much of an idle time's allowance may be used at once: of a tenth of a second.
const burstFor = 100 * time.Millisecond

// set adopts the limits that the volume has at a revision, if that is news. Requests that wait go on under the new ones at
// once; what larger requests were let through in advance stays to be paid.
func (t *throttle) set(revision uint64, l storage.VolumeLimits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if revision < t.revision {
		return
	}
	t.revision = revision
	if l == t.limits {
		return
	}
	now := time.Now()
	t.requests = adjust(t.requests, now, l.MaxIOPS)
	t.bytes = adjust(t.bytes, now, l.MaxBytesPerSecond)
	t.limits = l
	t.limited.Store(l != storage.VolumeLimits{})
	close(t.changed)
	t.changed = make(chan struct{})
}

func adjust(l *rate.Limiter, now time.Time, perSecond int64) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	limit, burst := rate.Limit(perSecond), int(max(1, perSecond/int64(time.Second/burstFor)))
	if l == nil {
		return rate.NewLimiter(limit, burst)
	}
	l.SetLimitAt(now, limit)
	l.SetBurstAt(now, burst)
	return l
}

// wait returns when one more request of n bytes may begin, or ended is closed, or, with its error, when ctx has ended. It
// reports whether the request had to wait.
func (t *throttle) wait(ctx context.Context, ended <-chan struct{}, n int64) (waited bool, err error) {
	if !t.limited.Load() {
		return false, nil
	}
	select {
	case t.turn <- struct{}{}:
	default:
		waited = true
		select {
		case t.turn <- struct{}{}:
		case <-ended:
			return true, nil
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
	defer func() { <-t.turn }()
	for {
		r := t.reserve(n)
		if r.delay <= 0 {
			t.charge(&r)
			return waited, nil
		}
		waited = true
		again, err := r.await(ctx, ended)
		switch {
		case err != nil:
			r.cancel()
			return true, err
		case again:
			r.cancel()
			continue
		}
		t.charge(&r)
		return true, nil
	}
}

// reservation is the place of the first request in the buckets.
type reservation struct {
	delay           time.Duration
	requests, bytes *rate.Reservation // nil: no limit
	from            *rate.Limiter     // of bytes
	rest            int64             // bytes that are not reserved
	changed         <-chan struct{}
}

// reserve takes a token for the request, and at most as many of its bytes as the bucket can hold. A larger request begins
// when the bucket is full, and later ones wait until the rest has been paid back.
func (t *throttle) reserve(n int64) reservation {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, r := time.Now(), reservation{changed: t.changed}
	if t.requests != nil {
		r.requests = t.requests.ReserveN(now, 1)
		r.delay = r.requests.DelayFrom(now)
	}
	if t.bytes != nil && n > 0 {
		first := min(n, int64(t.bytes.Burst()))
		r.bytes, r.from, r.rest = t.bytes.ReserveN(now, int(first)), t.bytes, n-first
		r.delay = max(r.delay, r.bytes.DelayFrom(now))
	}
	return r
}

// await returns when the reservation has come, the limits have changed (again), or nobody waits any more.
func (r *reservation) await(ctx context.Context, ended <-chan struct{}) (again bool, err error) {
	select {
	case <-time.After(r.delay):
	case <-ended:
	case <-r.changed:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
	return false, nil
}

// cancel gives the tokens back.
func (r *reservation) cancel() {
	now := time.Now()
	for _, one := range []*rate.Reservation{r.requests, r.bytes} {
		if one != nil {
			one.CancelAt(now)
		}
	}
}

// charge takes what the request had in advance out of the bucket. The turn is held.
func (t *throttle) charge(r *reservation) {
	if r.rest == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for now := time.Now(); r.rest > 0; {
		step := min(r.rest, int64(r.from.Burst()))
		r.from.ReserveN(now, int(step)) // always possible: it is no more than a burst
		r.rest -= step
	}
}

// pace waits until one more request of n bytes may begin within the volume's limits.
func (t *trunk) pace(ctx context.Context, n int64) error {
	if !t.throttle.limited.Load() {
		return nil
	}
	begin := time.Now()
	t.metrics.all.waiting.Inc()
	waited, err := t.throttle.wait(ctx, t.ctx.Done(), n)
	t.metrics.all.waiting.Dec()
	if waited {
		t.metrics.all.throttled.Inc()
		t.metrics.throttledSeconds.Add(time.Since(begin).Seconds())
	}
	if err != nil {
		return storage.E("wait for the limits", storage.KindCanceled, t.subject, err)
	}
	return nil
}

// throttleOf returns the throttle of a volume, which its trunks at this gateway share. It is given back by
// dropThrottle.
func (g *Gateway) throttleOf(id storage.VolumeID) *throttle {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.throttles[id]
	if t == nil {
		t = newThrottle()
		g.throttles[id] = t
	}
	t.refs++
	return t
}

func (g *Gateway) dropThrottle(t *trunk) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.throttle.refs--; t.throttle.refs == 0 {
		delete(g.throttles, t.id)
	}
}
