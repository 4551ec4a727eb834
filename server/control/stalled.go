package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/server/placement"
)

// untoldTimeout bounds the creation of a replica on a node of a release that does not say whether it gets on.
const untoldTimeout = 6 * time.Hour

// bounded carries an order out within RequestTimeout; the creation of a replica for as long as its node gets on with pulls.
func (l *leadership) bounded(ctx context.Context, s placement.Step, order func(context.Context) error) error {
	if s.Kind != placement.StepCreate {
		ctx, cancel := context.WithTimeout(ctx, l.c.cfg.RequestTimeout)
		defer cancel()
		return order(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		l.watchPulls(ctx, s.Node, cancel)
	}()
	err := order(ctx)
	stalled := context.Cause(ctx)
	cancel(nil)
	<-gone
	if err != nil && errors.Is(stalled, errStalled) {
		err = storage.E("create replica", storage.KindUnavailable, "group "+s.Group.String(), fmt.Errorf("%w: %w", stalled, err))
	}
	return err
}

// errStalled says that a node does not get on with what it was asked for.
var errStalled = errors.New("the node's reports say of no pull that it gets on")

// watchPulls calls cancel when the node's reports, or their absence, say of no pull for CreateTimeout that it gets on. Any pull into the node
// counts, because others wait their turn there.
func (l *leadership) watchPulls(ctx context.Context, node storage.NodeID, cancel context.CancelCauseFunc) {
	seen, since := l.pullSteps(node), time.Now()
	for clock.Sleep(ctx, l.c.cfg.ReportInterval) == nil {
		steps, limit := l.pullSteps(node), l.c.cfg.CreateTimeout
		if steps == nil {
			limit = max(limit, untoldTimeout)
		} else if seen == nil || *steps != *seen {
			seen, since = steps, time.Now()
		}
		if time.Since(since) >= limit {
			cancel(fmt.Errorf("%w for %v", errStalled, limit))
			return
		}
	}
}

// pullSteps returns what the node last said of how its pulls get on; nil if it does not say.
func (l *leadership) pullSteps(node storage.NodeID) *uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reports[node].report.PullSteps
}
