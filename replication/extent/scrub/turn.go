package scrub

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

const (
	// LeastVerifyRate is the slowest that blocks are verified at when somebody asks, in bytes a second.
	LeastVerifyRate = 1 << 20
	// MostVerifyRate is the fastest, in bytes a second.
	MostVerifyRate = 1 << 30
	// verifyRate is how fast they are if nobody says otherwise, without the brake.
	verifyRate = mostRate
)

// Turn is the right to verify blocks of a disk. One at a time has it. Its user's goroutine owns it, and ends it.
type Turn struct {
	w    *Worker
	rate float64
}

// Turn waits for the turn to verify blocks at a rate in bytes a second (0: as fast as a scrub at most), with the scrub's brake.
// KindUnavailable if others had it until ctx ended.
func (w *Worker) Turn(ctx context.Context, rate int64) (*Turn, error) {
	select {
	case w.turn <- struct{}{}:
		w.pace.verifying.Add(1)
		return &Turn{w, float64(min(max(cmp.Or(rate, verifyRate), LeastVerifyRate), MostVerifyRate))}, nil
	case <-ctx.Done():
		return nil, storage.E("verify", storage.KindUnavailable, "store", errors.New("another volume is being verified on its disk"))
	}
}

// End gives the turn to the next.
func (t *Turn) End() {
	t.w.pace.verifying.Add(-1)
	<-t.w.turn
}

// Wait returns when n bytes may be read.
func (t *Turn) Wait(ctx context.Context, n int64) error {
	for {
		part := 1.0
		if bits := t.w.pace.part.Load(); bits != 0 {
			part = math.Float64frombits(bits)
		}
		rest := t.w.turns.take(time.Now(), max(LeastVerifyRate, t.rate*part), n)
		if rest == 0 {
			return ctx.Err()
		}
		if err := clock.Sleep(ctx, rest); err != nil {
			return err
		}
	}
}

// Became counts what became of bad blocks.
type Became struct {
	Mended, Lost, Later int
}

// Mend mends what is bad in f, whether it is known or not, and has the segments of these blocks read soon: what is bad beside them is mended,
// too, and they are emptied.
func (t *Turn) Mend(ctx context.Context, f Found) Became {
	w := t.w
	w.mu.Lock()
	w.counts.Bytes += f.Bytes
	w.counts.Blocks += int64(f.Blocks)
	var blocks []*known
	for _, b := range f.Bad {
		k := w.bad[b.From.Position()]
		if k == nil {
			w.counts.Found++
			k = &known{Bad: b}
		}
		blocks = append(blocks, k)
	}
	w.mu.Unlock()
	n := w.mend(ctx, blocks)
	for _, b := range f.Bad {
		w.Ask(b.From.Segment)
	}
	return Became{n[Mended], n[Lost], n[Later]}
}
