package chaos

import (
	"fmt"
	"sync"
	"time"
)

// calm finds out how long requests waited while nothing was broken: what is lost after everybody is back.
type calm struct {
	began time.Time

	mu     sync.Mutex
	faults []span // in order; guarded by mu
	waits  []span // guarded by mu
}

// span is a stretch of time.
type span struct{ from, to time.Time }

// note takes a fault.
func (c *calm) note(struck, mended time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, span{struck, mended})
}

// maxWaits bounds the waits that are kept.
const maxWaits = 100_000

// waited takes a request that took long.
func (c *calm) waited(from, to time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waits) < maxWaits {
		c.waits = append(c.waits, span{from, to})
	}
}

// longest returns the longest stretch of a wait in which no fault was on, and when it began.
func (c *calm) longest() (d time.Duration, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	take := func(from, to time.Time) {
		if to.Sub(from) > d {
			d, at = to.Sub(from), from
		}
	}
	for _, w := range c.waits {
		from := w.from
		for _, f := range c.faults {
			if f.to.After(from) && f.from.Before(w.to) {
				take(from, f.from)
				from = f.to
			}
		}
		take(from, w.to)
	}
	return d, at
}

// String is what longest returns, for a log.
func (c *calm) String() string {
	d, at := c.longest()
	if d == 0 {
		return "none worth telling"
	}
	return fmt.Sprintf("%.2f s, %.2f s after the beginning", d.Seconds(), at.Sub(c.began).Seconds())
}
