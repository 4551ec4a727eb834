package replication

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

// admission bounds the bytes that are proposed and not yet applied: per group, and per store over all its groups. An
// operation waits for both; a larger one than the bound counts as the bound.
type admission struct {
	group, store           *semaphore.Weighted
	groupBytes, storeBytes int64
}

// overheadBytes is what an operation costs beside its data: a goroutine that waits, and the library's records of it.
const overheadBytes = 4 << 10

// admissionPatience bounds the wait for room: what waits longer waits for a disk or a majority that is not there.
const admissionPatience = 5 * time.Second

// acquire waits for room for n bytes, no longer than admissionPatience, and returns what gives it back.
func (a *admission) acquire(ctx context.Context, n int64) (release func(), err error) {
	n += overheadBytes
	inGroup, inStore := min(n, a.groupBytes), min(n, a.storeBytes)
	if err := acquireWithin(ctx, a.group, inGroup); err != nil {
		return nil, err
	}
	if err := acquireWithin(ctx, a.store, inStore); err != nil {
		a.group.Release(inGroup)
		return nil, err
	}
	return func() {
		a.store.Release(inStore)
		a.group.Release(inGroup)
	}, nil
}

func acquireWithin(ctx context.Context, s *semaphore.Weighted, n int64) error {
	if s.TryAcquire(n) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, admissionPatience)
	defer cancel()
	return s.Acquire(ctx, n)
}
