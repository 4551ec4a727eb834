package volume

import (
	"context"
	"sync"
	"time"
)

// backoffFor returns the pause before attempt n+1, n >= 0: it doubles from least to most. Jitter in [0, 1) takes away
// up to half of it, so that requests that failed together do not come back together.
func backoffFor(n int, least, most time.Duration, jitter float64) time.Duration {
	d := most
	if n < 32 && least<<n < most && least<<n > 0 {
		d = least << n
	}
	return d - time.Duration(jitter*float64(d)/2)
}

// attemptClock hands out the contexts of attempts. Attempts that begin within an eighth of the timeout share one
// context, so that an attempt costs neither an allocation nor a timer; each has at least the timeout.
type attemptClock struct {
	parent  context.Context // a session's or a volume's; ends when its owner does
	timeout time.Duration

	mu     sync.Mutex
	ctx    context.Context // guarded by mu
	cancel context.CancelFunc
	renew  time.Time // guarded by mu; ctx is handed out before this
}

func newAttemptClock(parent context.Context, timeout time.Duration) *attemptClock {
	return &attemptClock{parent: parent, timeout: timeout}
}

func (c *attemptClock) context() context.Context {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil || !now.Before(c.renew) {
		// The context before this one is not canceled: attempts still use it. Its own timer ends it.
		c.ctx, c.cancel = context.WithTimeout(c.parent, c.timeout+c.timeout/8)
		c.renew = now.Add(c.timeout / 8)
	}
	return c.ctx
}

// raise sets v to at least n.
func raise[T int64 | uint64](v interface {
	Load() T
	CompareAndSwap(old, new T) bool
}, n T) {
	for {
		old := v.Load()
		if n <= old || v.CompareAndSwap(old, n) {
			return
		}
	}
}
