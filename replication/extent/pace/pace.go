package pace

import (
	"context"
	"sync"
	"time"

	"github.com/storaged/storaged/internal/clock"
)

const (
	// Least is what may be copied in a second at least: while a copy is missing, data is in danger.
	Least = 16 << 20
	// more is by how much more may be copied in a second, each second that clients do not feel it, beside a tenth.
	more = 8 << 20
	// most is from where on there is no limit.
	most = 4 << 30
	// slack is what clients may wait longer than half as long again: of a disk that answers in a tenth of a millisecond each block
	// that is copied would be felt.
	slack = time.Millisecond

	// every is how often clients are looked at.
	every = time.Second
	// restEvery is how long is copied at most without a rest of every, by which the latency without copies is known.
	restEvery = 30 * time.Second
	// burst is what may be copied at once after a pause, as a part of the limit.
	burst = every / 32
)

// Pace says when how much may be copied. Its methods may be called concurrently.
type Pace struct {
	latency func() time.Duration

	mu      sync.Mutex    // guards all below
	alone   time.Duration // latency while nothing is copied; 0: not known
	limit   float64       // bytes a second; 0: none
	copied  int64         // bytes since looked
	looked  time.Time
	rested  time.Time // when the last rest has ended, or what was as good
	resting bool

	tokens float64
	filled time.Time
}

// New returns a Pace. latency says how long the slowest of clients' writes took since it was asked last; 0: there were none.
func New(latency func() time.Duration) *Pace { return &Pace{latency: latency} }

// Wait returns when n bytes may be copied, or the error of ctx.
func (p *Pace) Wait(ctx context.Context, n int64) error {
	for {
		rest := p.take(time.Now(), n)
		if rest <= 0 {
			return ctx.Err()
		}
		if err := clock.Sleep(ctx, rest); err != nil {
			return err
		}
	}
}

// take returns how long to wait before it is asked again; 0 if n bytes may be copied now, which it counts.
func (p *Pace) take(now time.Time, n int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.looked) >= every {
		p.look(now)
	}
	if p.resting {
		return every - now.Sub(p.looked)
	}
	if p.limit > 0 {
		p.tokens = min(p.tokens+p.limit*now.Sub(p.filled).Seconds(), p.limit*burst.Seconds())
		p.filled = now
		if p.tokens <= 0 {
			return min(every/4, time.Duration(-p.tokens/p.limit*float64(time.Second))+time.Millisecond)
		}
		p.tokens -= float64(n)
	}
	p.copied += n
	return 0
}

// look learns from what was since the last look.
func (p *Pace) look(now time.Time) {
	latency, rate := p.latency(), float64(p.copied)/now.Sub(p.looked).Seconds()
	alone := p.copied == 0
	p.looked, p.copied = now, 0
	switch {
	case latency == 0: // there are no clients
		p.raise()
		p.rested = now
	case alone && (p.alone == 0 || latency < p.alone):
		p.alone = latency
	case alone:
		p.alone += (latency - p.alone) / 8
	case p.alone > 0 && latency > p.alone+p.alone/2+slack:
		if p.limit == 0 {
			p.limit = rate
		}
		p.limit = max(Least, min(p.limit, rate)/2)
		p.filled = now
	default:
		p.raise()
	}
	if alone || p.rested.IsZero() {
		p.rested = now
	}
	p.resting = latency > 0 && (p.alone == 0 || now.Sub(p.rested) >= restEvery)
}

func (p *Pace) raise() {
	if p.limit += p.limit/10 + more; p.limit > most || p.limit == more {
		p.limit = 0
	}
}
