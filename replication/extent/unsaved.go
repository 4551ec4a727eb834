package extent

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	storage "github.com/storaged/storaged"
)

// unsavedShares times the size of the cache is how much memory the pages that Pebble does not hold may take. Above that no
// entries are taken that could change more pages. Checkpoints are due at two times.
const unsavedShares = 4

// unsavedPages bounds the memory for pages that are not in Pebble yet. Such pages cannot be evicted, and when checkpoints
// are slow, or stand still, while the log goes on, there is no end to them.
//
// The bound is kept where entries come in (Store.AwaitRoom), not where they are applied. A checkpoint needs the goroutine
// that applies to freeze the tables, and then Raft's main loop, which hands that goroutine its entries: if applying waited
// for a checkpoint, each could wait for the other. So everything in the log is applied, whatever the limit says. There may be
// more pages than the limit by what the entries that were taken, and not applied yet, can change. Their bytes bound that.
type unsavedPages struct {
	limit, pages atomic.Int64

	mu   sync.Mutex    // guards all below; a leaf
	less chan struct{} // closed when there are fewer pages than before; nil: nobody waits
}

// add notes n pages more, of the group that of belongs to; fewer if n is negative.
func (u *unsavedPages) add(of *atomic.Int64, n int64) {
	of.Add(n)
	u.pages.Add(n)
	if n < 0 {
		u.wake()
	}
}

// drop forgets the pages of a group.
func (u *unsavedPages) drop(of *atomic.Int64) {
	u.pages.Add(-of.Swap(0))
	u.wake()
}

// setLimit changes the bound.
func (u *unsavedPages) setLimit(pages int64) {
	u.limit.Store(pages)
	u.wake()
}

func (u *unsavedPages) full() bool { return u.pages.Load() >= u.limit.Load() }

func (u *unsavedPages) wake() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.less != nil {
		close(u.less)
		u.less = nil
	}
}

// await returns when there is room for more pages, or with the error of ctx.
func (u *unsavedPages) await(ctx context.Context) error {
	for u.full() {
		u.mu.Lock()
		if u.less == nil {
			u.less = make(chan struct{})
		}
		less := u.less
		u.mu.Unlock()
		if !u.full() { // since we looked, and before we could be woken
			return nil
		}
		select {
		case <-less:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

var errTablesLag = errors.New("its tables lag behind the log: too many changes wait for a checkpoint")

// Crowded reports that AwaitRoom would wait.
func (s *Store) Crowded() bool { return s.unsaved.full() }

// AwaitRoom returns when the store may take entries that change tables: at once, unless so many changed pages wait for
// their checkpoints that more could take all memory (I9). Whoever appends entries that come from outside, proposed or
// replicated, asks first. It must not be asked by anybody whom a checkpoint waits for: the goroutine that applies, Raft's
// main loop. The error is of KindUnavailable when ctx is done first, and of KindIO on a failed disk.
func (s *Store) AwaitRoom(ctx context.Context) error {
	if !s.unsaved.full() {
		return nil
	}
	if err := s.Failed(); err != nil {
		return storage.E("take entries", storage.KindIO, "store "+s.cfg.Dir, err)
	}
	if err := s.unsaved.await(ctx); err != nil {
		return storage.E("take entries", storage.KindUnavailable, "store "+s.cfg.Dir, errTablesLag)
	}
	return nil
}
