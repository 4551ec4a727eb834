package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/storaged/storaged/internal/clock"
)

// target is what faults are done to: nodes from 0 to nodes-1.
type target interface {
	nodes() int
	kill(node int) error
	restart(ctx context.Context, node int) error
	pause(node int) error
	resume(node int) error
	// partitions says whether the network can be cut; if not, the three below are not called.
	partitions() bool
	cut(a, b int) error
	oneWay(from, to int) error
	isolate(node int) error
	heal() error
	// leader returns a node that leads, as far as anybody knows.
	leader(ctx context.Context) int
}

// fault is one thing that goes wrong and is mended later.
type fault struct {
	name   string
	strike func() error
	mend   func(context.Context) error
}

// faults returns the faults that a target knows, aimed at random nodes.
func faults(ctx context.Context, t target, rng *rand.Rand) []fault {
	node := rng.IntN(t.nodes())
	other := (node + 1 + rng.IntN(t.nodes()-1)) % t.nodes()
	leader := t.leader(ctx)
	heal := func(context.Context) error { return t.heal() }
	all := []fault{
		{name: fmt.Sprintf("kill -9 of node %d", node+1), strike: func() error { return t.kill(node) },
			mend: func(ctx context.Context) error { return t.restart(ctx, node) }},
		{name: fmt.Sprintf("kill -9 of leading node %d", leader+1), strike: func() error { return t.kill(leader) },
			mend: func(ctx context.Context) error { return t.restart(ctx, leader) }},
		{name: fmt.Sprintf("node %d frozen", node+1), strike: func() error { return t.pause(node) },
			mend: func(context.Context) error { return t.resume(node) }},
		{name: fmt.Sprintf("leading node %d frozen", leader+1), strike: func() error { return t.pause(leader) },
			mend: func(context.Context) error { return t.resume(leader) }},
	}
	if !t.partitions() {
		return all
	}
	return append(all,
		fault{name: fmt.Sprintf("nodes %d and %d cut", node+1, other+1), strike: func() error { return t.cut(node, other) }, mend: heal},
		fault{name: fmt.Sprintf("what node %d sends node %d is lost", node+1, other+1),
			strike: func() error { return t.oneWay(node, other) }, mend: heal},
		fault{name: fmt.Sprintf("leading node %d alone", leader+1), strike: func() error { return t.isolate(leader) }, mend: heal},
		fault{name: fmt.Sprintf("node %d alone", node+1), strike: func() error { return t.isolate(node) }, mend: heal},
	)
}

// torment lets one fault after the other strike until ctx is done, and leaves nothing broken. note is told of each when it
// was mended. It returns the first error of a fault or of its mending.
func torment(ctx context.Context, t target, seed uint64, note func(struck, mended time.Time), logf func(string, ...any)) error {
	rng := rand.New(rand.NewPCG(seed, 0xfa017))
	began := time.Now()
	for pause(ctx, between(rng, 500*time.Millisecond, 1500*time.Millisecond)) {
		all := faults(ctx, t, rng)
		f := all[rng.IntN(len(all))]
		hold := between(rng, 300*time.Millisecond, 4*time.Second)
		logf("%6.2f s  %s for %v", time.Since(began).Seconds(), f.name, hold.Round(time.Millisecond))
		struck := time.Now()
		if err := f.strike(); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		pause(ctx, hold)
		// What was broken is mended, also at the end.
		mending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		err := f.mend(mending)
		cancel()
		note(struck, time.Now())
		if err != nil {
			return fmt.Errorf("mend %s: %w", f.name, err)
		}
	}
	return nil
}

func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

// pause waits; it returns false when ctx was done before.
func pause(ctx context.Context, d time.Duration) bool {
	return clock.Sleep(ctx, d) == nil
}
