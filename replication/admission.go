package replication

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// admission bounds the bytes that are proposed and not yet applied: per group, and per store over all its groups. An
// operation waits for both; a larger one than the bound counts as the bound.
type admission struct {
	group, store           *semaphore.Weighted
	groupBytes, storeBytes int64
}

// overheadBytes is what an operation costs beside its data.
const overheadBytes = 512

// acquire waits for room for n bytes and returns what gives it back.
func (a *admission) acquire(ctx context.Context, n int64) (release func(), err error) {
	n += overheadBytes
	inGroup, inStore := min(n, a.groupBytes), min(n, a.storeBytes)
	if err := a.group.Acquire(ctx, inGroup); err != nil {
		return nil, err
	}
	if err := a.store.Acquire(ctx, inStore); err != nil {
		a.group.Release(inGroup)
		return nil, err
	}
	return func() {
		a.store.Release(inStore)
		a.group.Release(inGroup)
	}, nil
}
