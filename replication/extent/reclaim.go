package extent

import (
	"context"
	"time"

	"github.com/storaged/storaged/internal/clock"
)

// Guards I6: what was discarded or deleted is free in bounded time. Segments are recycled after checkpoints, and those
// are started by bytes written; a store on which nothing is written any more, because it is full or its clients are
// content, would wait for one for ever. So changes of a group are checkpointed within maxCheckpointAge whatever was
// written, and soon on a store that is short of room.
const (
	reclaimEvery     = time.Second
	maxCheckpointAge = 5 * time.Minute
	shortOfRoomAge   = 10 * time.Second // below twice the reserve
	fullAge          = time.Second      // below the reserve
)

// runReclaim looks at the store now and then until ctx is done.
func (s *Store) runReclaim(ctx context.Context) {
	tick := clock.NewTimer(reclaimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			tick.Again()
			s.reclaim(now)
		}
	}
}

// reclaim asks for the checkpoints of groups whose changes are old enough.
func (s *Store) reclaim(now time.Time) {
	if s.Failed() != nil {
		return
	}
	space, age := s.Space(), maxCheckpointAge
	switch {
	case space.Full():
		age = fullAge
	case space.FreeBytes < 2*space.ReserveBytes:
		age = shortOfRoomAge
	}
	s.mu.Lock()
	var due []*Group
	for _, g := range s.groups {
		// A checkpoint that is due by what was written has been asked for; but the request may have been lost, or the
		// checkpoint failed.
		if d := g.changedFor(now); d >= age || d >= shortOfRoomAge && g.CheckpointDue() {
			due = append(due, g)
		}
	}
	s.mu.Unlock()
	for _, g := range due {
		g.wantCheckpoint()
	}
	if len(due) == 0 && age == fullAge {
		s.recycle() // what a reader or a pull had pinned
	}
}

// changedFor returns for how long the group has been seen with changes that no checkpoint holds; 0 if it has none. It
// is called by runReclaim's goroutine only.
func (g *Group) changedFor(now time.Time) time.Duration {
	g.mu.RLock()
	freezes := g.freezes
	g.mu.RUnlock()
	if g.sinceFreeze.Load() == 0 || freezes != g.changedFreezes {
		g.changedAt, g.changedFreezes = now, freezes
	}
	return now.Sub(g.changedAt)
}

// RequestCheckpoint asks for a checkpoint of the group soon, however little was written since the last one.
func (g *Group) RequestCheckpoint() { g.wantCheckpoint() }

// wantCheckpoint asks for a checkpoint of the group although little was written.
func (g *Group) wantCheckpoint() {
	g.wanted.Store(true)
	g.store.cfg.OnCheckpointDue(g.key)
}
