package extent

import (
	"context"
	"errors"

	storage "github.com/storaged/storaged"
)

// unsavedShares times the size of the cache is how much memory the pages that Pebble does not hold may take. Above that no
// entries are taken that could change more pages. Checkpoints are due at two times.
const unsavedShares = 4

// The bound on pages that are not in Pebble yet (Store.unsaved) is for memory: they cannot be evicted, and when checkpoints are slow, or stand
// still, while the log goes on, there is no end to them.
//
// It is kept where entries come in (Store.AwaitRoom), not where they are applied. A checkpoint needs the goroutine
// that applies to freeze the tables, and then Raft's main loop, which hands that goroutine its entries: if applying waited
// for a checkpoint, each could wait for the other. So everything in the log is applied, whatever the limit says. There may be
// more pages than the limit by what the entries that were taken, and not applied yet, can change. Their bytes bound that.

var errTablesLag = errors.New("its tables lag behind the log: too many changes wait for a checkpoint")

// Crowded reports that AwaitRoom would wait.
func (s *Store) Crowded() bool { return s.unsaved.Full() }

// AwaitRoom returns when the store may take entries that change tables: at once, unless so many changed pages wait for
// their checkpoints that more could take all memory (I9). Whoever appends entries that come from outside, proposed or
// replicated, asks first. It must not be asked by anybody whom a checkpoint waits for: the goroutine that applies, Raft's
// main loop. The error is of KindUnavailable when ctx is done first, and of KindIO on a failed disk.
func (s *Store) AwaitRoom(ctx context.Context) error {
	if !s.unsaved.Full() {
		return nil
	}
	if err := s.Failed(); err != nil {
		return storage.E("take entries", storage.KindIO, "store "+s.cfg.Dir, err)
	}
	if err := s.unsaved.Await(ctx); err != nil {
		return storage.E("take entries", storage.KindUnavailable, "store "+s.cfg.Dir, errTablesLag)
	}
	return nil
}
