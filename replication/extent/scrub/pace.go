package scrub

import (
	"context"
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

// pace holds reads to a rate, and gives way to clients: the worker's goroutine owns it.
type pace struct {
	latency func() time.Duration // of syncs since it was asked last
	rate    float64              // bytes a second, without the brake
	brake   compact.Brake
	looked  time.Time

	tokens float64
	filled time.Time
}

// wait returns when n bytes may be read.
func (p *pace) wait(ctx context.Context, n int64) error {
	p.brake.Use()
	for {
		now := time.Now()
		if now.Sub(p.looked) >= paceEvery {
			p.looked = now
			p.brake.Feel(p.latency())
		}
		rate := p.rate * p.brake.Part()
		p.tokens = min(p.tokens+rate*now.Sub(p.filled).Seconds(), rate*burst.Seconds())
		p.filled = now
		if p.tokens > 0 {
			p.tokens -= float64(n)
			return ctx.Err()
		}
		rest := min(paceEvery/4, time.Duration(-p.tokens/rate*float64(time.Second))+time.Millisecond)
		if err := clock.Sleep(ctx, rest); err != nil {
			return err
		}
	}
}

// rest lets the brake learn how long syncs take without us.
func (p *pace) rest(now time.Time) {
	if now.Sub(p.looked) >= paceEvery {
		p.looked = now
		p.brake.Feel(p.latency())
	}
}
