package control

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/server/placement"
)

// A creation goes on for as long as its node says that pulls get on, however long that is, and ends when it does not: it says so, it is silent,
// or, with a release that does not say, after hours. Other orders end by the clock.
//
// Lines: each case of watchPulls, and the kind in bounded; without one a case failed.
func TestCreationGoesOnWhileItGetsOn(t *testing.T) {
	const day = 24 * time.Hour
	told := func(n uint64) *uint64 { return &n }
	for _, c := range []struct {
		name   string
		kind   placement.StepKind
		steps  func(after time.Duration) *uint64
		least  time.Duration // how long it goes on
		atMost time.Duration
		want   error
	}{
		{"gets on for a day", placement.StepCreate, func(d time.Duration) *uint64 { return told(uint64(min(d, day) / time.Minute)) },
			day, day + 2*time.Minute, errStalled},
		{"says that it does not", placement.StepCreate, func(time.Duration) *uint64 { return told(7) }, 90 * time.Second, 92 * time.Second, errStalled},
		{"does not say", placement.StepCreate, func(time.Duration) *uint64 { return nil }, untoldTimeout, untoldTimeout + 2*time.Second, errStalled},
		{"says it late", placement.StepCreate, func(d time.Duration) *uint64 {
			if d < time.Hour {
				return nil
			}
			return told(7)
		}, time.Hour + 90*time.Second, time.Hour + 92*time.Second, errStalled},
		{"another order", placement.StepDrop, func(time.Duration) *uint64 { return nil }, 5 * time.Second, 5 * time.Second, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &leadership{c: &Controller{}, reports: map[storage.NodeID]heardReport{}}
				l.c.cfg.setDefaults()
				begun := time.Now()
				ctx, stop := context.WithCancel(t.Context())
				go func() {
					for ctx.Err() == nil {
						l.mu.Lock()
						l.reports[3] = heardReport{report: placement.NodeReport{Node: 3, PullSteps: c.steps(time.Since(begun))}}
						l.mu.Unlock()
						_ = clock.Sleep(ctx, time.Second)
					}
				}()
				err := l.bounded(ctx, placement.Step{Kind: c.kind, Group: 1, Node: 3}, func(ctx context.Context) error {
					<-ctx.Done()
					return ctx.Err()
				})
				if took := time.Since(begun); took < c.least || took > c.atMost || !errors.Is(err, c.want) {
					t.Errorf("ended after %v: %v", took, err)
				}
				stop()
				synctest.Wait()
			})
		})
	}
}
