package reclaim

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/segment"
)

// Guards I6: what was discarded or deleted is free in bounded time. Segments are recycled after checkpoints, and bytes written
// start those. A store on which nothing is written any more, because it is full or its clients are content, would wait for one
// for ever. So a replica's changes are checkpointed within MaxCheckpointAge whatever was written, and soon on a store that is
// short of room.
const (
	// Every is how often the store is looked at.
	Every = time.Second
	// MaxCheckpointAge is how long changes wait for a checkpoint at most.
	MaxCheckpointAge = 5 * time.Minute

	wastedAge      = 20 * time.Second // much would be free after a checkpoint
	shortOfRoomAge = 10 * time.Second // below twice the reserve
	fullAge        = time.Second      // below the reserve

	// offerAllEvery is how often all segments are looked at that may be dead, whatever happens. It takes some ms for a hundred thousand.
	offerAllEvery = 30 * time.Second
)

// IdleSegments is how many segments a replica's recovery position may lie behind the end of the log before it is moved
// forward although the replica has nothing new.
const IdleSegments = 2

// Segments are the segments of the disk's log, and which of them are live: tables refer to them.
type Segments interface {
	// Dead returns the sealed segments to which no table refers, nor soon may.
	Dead() []segment.SegmentNo
	// Recycle lets a segment be used again. KindConflict if the log needs it, somebody reads it, or a table refers to it by
	// now; KindNotFound if it is gone.
	Recycle(no segment.SegmentNo) error
	// Last returns the segment in which the durable log ends.
	Last() segment.SegmentNo
}

// Tables are the tables in the database, which a worker changes beside checkpoints.
type Tables interface {
	// Purge removes some pages of a deleted volume, if they are those of a replica and not of a pull that may be given up.
	// freed says that the volume has no more, more that there may be something left to purge.
	Purge() (freed, more bool, err error)
}

// Replica is a replica as far as its checkpoints go.
type Replica interface {
	Key() segment.GroupKey
	// Changed reports whether it has changes that were not frozen for a checkpoint yet, after how many freezes.
	Changed() (changed bool, freezes uint64)
	// CheckpointDue reports whether a checkpoint is due by what was written, or was asked for.
	CheckpointDue() bool
	RequestCheckpoint()
	// RecoveryFrom returns the segment in which recovery begins for it.
	RecoveryFrom() segment.SegmentNo
	// Advance moves that position forward as far as its checkpoint and copies of entries allow; moved is false if it stays.
	Advance() (moved bool, err error)
	// UncoveredBytes returns how much of the log is taken by entries that the checkpoint does not cover.
	UncoveredBytes() int64
	// Copy has these entries copied to the end of the log, so that a later Advance moves the position. begun is false if that is
	// not possible now. It does not wait for the copies.
	Copy() (begun bool, err error)
}

// Room says how much room a store has for writes that allocate.
type Room uint8

// Levels of room.
const (
	Enough Room = iota
	Wasted      // enough, and much that is taken is garbage: what was discarded or deleted, perhaps, and no checkpoint says so yet
	Short       // less than twice the reserve
	Full        // less than the reserve
)

// Config is what a Worker works on. All of it must be given.
type Config struct {
	Segments Segments
	Tables   Tables
	Replicas func() []Replica
	// Room gives the tables the room that they need, if free segments can be given up for it, and says how much there is. On a
	// failed disk ok is false.
	Room func() (room Room, ok bool)
	// LateSegments is how many segments a replica's recovery position may lie behind before it is asked for a checkpoint.
	LateSegments segment.SegmentNo
	SegmentBytes int64
	Logger       *slog.Logger
}

// Worker is the one that gives back what a store needs no more. All methods may be called concurrently, Run once.
type Worker struct {
	cfg    Config
	purges chan struct{}                 // capacity 1: there may be something to purge; never closed
	moves  chan struct{}                 // capacity 1: recovery positions are to be moved; never closed
	seen   map[segment.GroupKey]sighting // Run's own

	mu      sync.Mutex                             // guards all below
	asked   map[segment.GroupKey]segment.SegmentNo // where the log ended when a checkpoint was asked for to move the position
	stuck   map[segment.GroupKey]position          // of replicas that hold the log
	copying bool                                   // copies were begun that no position has moved for yet
	room    Room                                   // at the last look

	offering   sync.Mutex // while segments are offered to the log; guards both below
	refused    []segment.SegmentNo
	offeredAll time.Time
}

// sighting is since when a replica has been seen with changes, after how many freezes.
type sighting struct {
	since   time.Time
	freezes uint64
}

// New returns a worker that waits for Run.
func New(c Config) *Worker {
	return &Worker{cfg: c, purges: make(chan struct{}, 1), moves: make(chan struct{}, 1), seen: map[segment.GroupKey]sighting{}, asked: map[segment.GroupKey]segment.SegmentNo{},
		stuck: map[segment.GroupKey]position{}, offeredAll: time.Now()}
}

// Run works until ctx is done.
func (w *Worker) Run(ctx context.Context) {
	var purging sync.WaitGroup // and moving
	defer purging.Wait()
	purging.Go(func() { w.runPurge(ctx) })
	purging.Go(func() { w.runMoves(ctx) })
	tick := clock.NewTimer(Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			tick.Again()
			w.look(now)
		}
	}
}

// Purge says that there may be something to purge.
func (w *Worker) Purge() {
	select {
	case w.purges <- struct{}{}:
	default:
	}
}

// runPurge purges step by step, so that checkpoints do not wait long for it. An interrupted purge goes on at the next start.
func (w *Worker) runPurge(ctx context.Context) {
	w.Purge()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.purges:
		}
		for more := true; more && ctx.Err() == nil; {
			var freed bool
			var err error
			if freed, more, err = w.cfg.Tables.Purge(); err != nil {
				w.cfg.Logger.Warn("tables of a deleted volume not removed", "error", err)
				break
			}
			if freed {
				w.Recycle()
			}
		}
	}
}

// runMoves moves recovery positions beside checkpoints. It is not Run's to do: to store a position may wait for room, which Run gives
// the tables.
func (w *Worker) runMoves(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.moves:
		}
		if w.advanceIdle() {
			w.Recycle()
		}
	}
}

// Recycle offers every dead segment to the log, which refuses those that it needs, or that somebody reads.
func (w *Worker) Recycle() {
	w.offering.Lock()
	defer w.offering.Unlock()
	w.offeredAll = time.Now()
	w.offerLocked(w.cfg.Segments.Dead())
}

// offerLocked offers segments to the log, and remembers which of them it refused.
func (w *Worker) offerLocked(dead []segment.SegmentNo) {
	var refused []segment.SegmentNo
	for _, no := range dead {
		switch err := w.cfg.Segments.Recycle(no); {
		case errors.Is(err, storage.ErrConflict):
			refused = append(refused, no)
		case err != nil && !errors.Is(err, storage.ErrNotFound):
			w.cfg.Logger.Warn("segment not recycled", "segment", no, "error", err)
			return
		}
	}
	w.refused = refused
}

// offerAgain offers what the log has refused, and sometimes all that is dead.
//
// Guards I6: what held it, a reader, a pull or a replica that needs the log, ends without a checkpoint, and on an idle store there may be none
// for ever.
func (w *Worker) offerAgain(now time.Time, room Room) {
	w.offering.Lock()
	defer w.offering.Unlock()
	dead := w.refused
	if room == Full || now.Sub(w.offeredAll) >= offerAllEvery {
		w.offeredAll = now
		dead = w.cfg.Segments.Dead()
	}
	w.offerLocked(dead)
}

// Checkpointed does what a new checkpoint makes possible; deleted says that it holds deletions of volumes.
func (w *Worker) Checkpointed(deleted bool) {
	if deleted {
		w.Purge()
	}
	w.advanceIdle()
	w.Recycle()
}

// advanceIdle moves the recovery positions of replicas that had nothing to do for long, so that they do not hold the log: one
// with nothing above its checkpoint gets its position moved, others are asked for a checkpoint. What then still holds the log has
// entries that nobody commits; they are copied. It reports whether a position was moved.
func (w *Worker) advanceIdle() (any bool) {
	last := w.cfg.Segments.Last()
	var held []Replica
	for _, r := range w.cfg.Replicas() {
		from := r.RecoveryFrom()
		if last < from+IdleSegments {
			continue
		}
		moved, err := r.Advance()
		if err != nil {
			w.cfg.Logger.Warn("recovery position not moved", "group", r.Key(), "error", err)
			return any
		}
		if moved {
			any = true
			continue
		}
		held = append(held, r)
		if last >= from+max(IdleSegments, w.cfg.LateSegments) && w.askOnce(r.Key(), last) {
			r.RequestCheckpoint()
		}
	}
	w.copyHeld(held, last)
	return any
}

// copyShare bounds what copies of entries add to the log: an eighth of what is written.
const copyShare = 8

// position is where a recovery position is, and since when.
type position struct {
	from  segment.SegmentNo
	since time.Time
}

// copyHeld has the entries copied of replicas that hold the log although they were asked for a checkpoint long ago. While room is short,
// also of those whose position has not moved for so long that a checkpoint must have moved it, whatever it holds: under load every
// replica holds some of the log, and to copy what the next checkpoint covers takes room instead of making it.
func (w *Worker) copyHeld(held []Replica, last segment.SegmentNo) {
	now := time.Now()
	var bytes int64
	for _, r := range held {
		bytes += r.UncoveredBytes()
	}
	late := 2 * max(IdleSegments, w.cfg.LateSegments)
	soon, patience := late, time.Duration(0)
	if room := w.roomThen(); room != Enough {
		soon, patience = IdleSegments, 2*checkpointAge(room)
	}
	copying := false
	for _, r := range held {
		from := r.RecoveryFrom()
		lag, stuck := last-from, now.Sub(w.stuckSince(r.Key(), from, now))
		if lag < late && (lag < soon || stuck < patience) || int64(lag)*w.cfg.SegmentBytes < copyShare*bytes {
			continue
		}
		begun, err := r.Copy()
		if err != nil {
			w.cfg.Logger.Warn("entries that hold the log not copied", "group", r.Key(), "error", err)
		}
		copying = copying || begun
	}
	w.mu.Lock() // not before: Copy takes locks of the replica
	defer w.mu.Unlock()
	w.copying = copying
}

// stuckSince returns since when a replica's position has been seen where it is.
func (w *Worker) stuckSince(key segment.GroupKey, from segment.SegmentNo, now time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, known := w.stuck[key]
	if !known || p.from != from {
		p = position{from, now}
		w.stuck[key] = p
	}
	return p.since
}

func (w *Worker) roomThen() Room {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.room
}

// noteRoom has positions moved without a checkpoint of anybody if copies are on their way, or nobody may write enough for one.
func (w *Worker) noteRoom(room Room) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.room = room
	if w.copying || room != Enough {
		select {
		case w.moves <- struct{}{}:
		default: // they are moved anyway
		}
	}
}

// askOnce reports whether a checkpoint is to be asked for to move the position: once for every segment that the log has gone
// on. What holds the position may be an entry that nobody commits (a follower that is cut off), and a checkpoint that changes
// nothing would ask for the next one for ever.
func (w *Worker) askOnce(key segment.GroupKey, last segment.SegmentNo) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked[key]
	w.asked[key] = last
	return asked != last
}

// Forget drops what is kept of a replica that is removed.
func (w *Worker) Forget(key segment.GroupKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.asked, key)
	delete(w.stuck, key)
}

// look asks for the checkpoints of replicas whose changes are old enough.
func (w *Worker) look(now time.Time) {
	room, ok := w.cfg.Room()
	if !ok {
		return
	}
	age := checkpointAge(room)
	seen := make(map[segment.GroupKey]sighting, len(w.seen))
	for _, r := range w.cfg.Replicas() {
		d := w.changedFor(r, now, seen)
		// A checkpoint that is due by what was written has been asked for; but the request may have been lost, or the
		// checkpoint failed.
		if d >= age || d >= shortOfRoomAge && r.CheckpointDue() {
			r.RequestCheckpoint()
		}
	}
	w.seen = seen
	w.noteRoom(room)
	w.offerAgain(now, room)
}

// checkpointAge is how old changes become before a checkpoint is asked for.
func checkpointAge(room Room) time.Duration {
	switch room {
	case Full:
		return fullAge
	case Short:
		return shortOfRoomAge
	case Wasted:
		return wastedAge
	}
	return MaxCheckpointAge
}

// changedFor returns for how long the replica has been seen with changes that no freeze took; 0 if it has none. What it knows
// then is in seen.
func (w *Worker) changedFor(r Replica, now time.Time, seen map[segment.GroupKey]sighting) time.Duration {
	changed, freezes := r.Changed()
	s, known := w.seen[r.Key()]
	if !changed || !known || freezes != s.freezes {
		s = sighting{now, freezes}
	}
	seen[r.Key()] = s
	return now.Sub(s.since)
}
