package scrub

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/extent/compact"
)

const (
	// leastRate and mostRate bound what is read in a second: a small disk is read within hours, and a large one does not notice.
	leastRate, mostRate = 1 << 20, 64 << 20
	// askedRate is the rate for segments that somebody asks for.
	askedRate = 16 << 20
	// ahead is the part of the interval within which a pass is to be done.
	ahead = 0.9

	paceEvery = time.Second
	// burst is what may be read at once after a pause, as a part of the rate.
	burst = paceEvery / 32
)

// rate returns the bytes a second with which todo bytes are read before the interval is over.
func rate(todo int64, begun, now time.Time, interval time.Duration) float64 {
	left := begun.Add(time.Duration(ahead * float64(interval))).Sub(now)
	if left <= 0 {
		return mostRate
	}
	return min(mostRate, max(leastRate, float64(todo)/left.Seconds()))
}

// pace holds reads to a rate, and gives way to clients: the worker's goroutine owns it, but for verifying and part.
type pace struct {
	latency func() time.Duration // of syncs since it was asked last
	rate    float64              // bytes a second, without the brake
	brake   compact.Brake
	looked  time.Time
	bucket

	verifying atomic.Int32  // others who read at part of their rate
	part      atomic.Uint64 // the bits of brake.Part, for these; 0: it was not felt yet
}

// feel moves the brake.
func (p *pace) feel(now time.Time) {
	p.looked = now
	if p.verifying.Load() > 0 { // their reads are no rest
		p.brake.Use()
	}
	p.brake.Feel(p.latency())
	p.part.Store(math.Float64bits(p.brake.Part()))
}

// bucket has the bytes that may be read at once.
type bucket struct {
	tokens float64
	filled time.Time
}

// take takes n bytes at a rate in bytes a second, or returns how long to wait before it is called again.
func (b *bucket) take(now time.Time, rate float64, n int64) (wait time.Duration) {
	b.tokens = min(b.tokens+rate*now.Sub(b.filled).Seconds(), rate*burst.Seconds())
	b.filled = now
	if b.tokens > 0 {
		b.tokens -= float64(n)
		return 0
	}
	return min(paceEvery/4, time.Duration(-b.tokens/rate*float64(time.Second))+time.Millisecond)
}

// wait returns when n bytes may be read.
func (p *pace) wait(ctx context.Context, n int64) error {
	p.brake.Use()
	for {
		now := time.Now()
		if now.Sub(p.looked) >= paceEvery {
			p.feel(now)
		}
		rest := p.take(now, p.rate*p.brake.Part(), n)
		if rest == 0 {
			return ctx.Err()
		}
		if err := clock.Sleep(ctx, rest); err != nil {
			return err
		}
	}
}

// rest lets the brake learn how long syncs take without us.
func (p *pace) rest(now time.Time) {
	if now.Sub(p.looked) >= paceEvery {
		p.feel(now)
	}
}
