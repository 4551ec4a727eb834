package volume

import (
	"context"
	"math"

	"golang.org/x/time/rate"

	storage "github.com/storaged/storaged"
)

// Limits bound what the hosts of one volume may ask for per second. Zero is no limit.
type Limits struct {
	RequestsPerSecond float64
	BytesPerSecond    float64 // of reads and of writes; what is zeroed or discarded counts as one block a request
	// BurstSeconds is how much of an idle time's allowance may be used at once (default 1).
	BurstSeconds float64
}

// Limiter applies Limits to all handles of one volume that it wraps. It may be used concurrently.
type Limiter struct {
	requests, bytes *rate.Limiter // nil: no limit
}

// NewLimiter returns a limiter: KindInvalid for a limit that is negative.
func NewLimiter(l Limits) (*Limiter, error) {
	if !(l.RequestsPerSecond >= 0 && l.BytesPerSecond >= 0 && l.BurstSeconds >= 0) {
		return nil, storage.E("limit volume", storage.KindInvalid, "a limit is negative", nil)
	}
	if l.BurstSeconds == 0 {
		l.BurstSeconds = 1
	}
	limiter := func(perSecond float64) *rate.Limiter {
		if perSecond == 0 {
			return nil
		}
		return rate.NewLimiter(rate.Limit(perSecond), max(1, int(min(perSecond*l.BurstSeconds, math.MaxInt32))))
	}
	return &Limiter{requests: limiter(l.RequestsPerSecond), bytes: limiter(l.BytesPerSecond)}, nil
}

// wait returns when one more request of n bytes may begin, or with KindCanceled when ctx has ended.
func (l *Limiter) wait(ctx context.Context, n int) error {
	err := waitN(ctx, l.requests, 1)
	if err == nil {
		err = waitN(ctx, l.bytes, n)
	}
	if err != nil {
		return storage.E("wait for the volume's limit", storage.KindCanceled, "", err)
	}
	return nil
}

func waitN(ctx context.Context, l *rate.Limiter, n int) error {
	for l != nil && n > 0 {
		step := min(n, l.Burst())
		if err := l.WaitN(ctx, step); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// Limited is a handle whose requests wait for a Limiter before they begin. Flush and Status are not limited.
type Limited struct {
	*Volume
	limiter *Limiter
}

// Wrap returns v with its requests limited.
func (l *Limiter) Wrap(v *Volume) *Limited { return &Limited{Volume: v, limiter: l} }

// ReadAt is Volume.ReadAt within the limits.
func (v *Limited) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := v.limiter.wait(ctx, len(p)); err != nil {
		return err
	}
	return v.Volume.ReadAt(ctx, p, off)
}

// WriteAt is Volume.WriteAt within the limits.
func (v *Limited) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := v.limiter.wait(ctx, len(p)); err != nil {
		return err
	}
	return v.Volume.WriteAt(ctx, p, off)
}

// WriteZeroes is Volume.WriteZeroes within the limits; zeroes that stay allocated count as written.
func (v *Limited) WriteZeroes(ctx context.Context, off, n int64, noHole bool) error {
	cost := int64(storage.BlockSize)
	if noHole {
		cost = n
	}
	if err := v.limiter.wait(ctx, int(min(cost, math.MaxInt))); err != nil {
		return err
	}
	return v.Volume.WriteZeroes(ctx, off, n, noHole)
}

// Discard is Volume.Discard within the limits.
func (v *Limited) Discard(ctx context.Context, off, n int64) error {
	if err := v.limiter.wait(ctx, storage.BlockSize); err != nil {
		return err
	}
	return v.Volume.Discard(ctx, off, n)
}
