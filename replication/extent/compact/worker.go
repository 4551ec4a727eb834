package compact

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// every is how often the disk is looked at.
	every = time.Second / 4
	// stubbornFor is for how long a segment is left alone from which not all could be moved.
	stubbornFor = 10 * time.Minute
	// refusedFor is the same for one that could not be recycled if it were empty.
	refusedFor = 2 * time.Second
	// sweepAt is how many stubborn segments are worth a pass over all tables.
	sweepAt = 32

	// leastEmptied victims may wait for checkpoints, and as many as a quarter of the reserve has segments; emptiedFor is how long they
	// count.
	leastEmptied = 8
	emptiedFor   = 2 * time.Minute

	// vainAfter is for how long nothing may be won before nobody is to wait for it: longer than it takes until segments that are dead already
	// are recycled, and than a group is without a leader.
	vainAfter = 30 * time.Second

	// LeastSegments is how many segments must be free for a round to begin: those that the copies may roll into, and one to spare.
	LeastSegments = 3

	// batchBlocks are copied before the log is waited for.
	batchBlocks = 64
)

// Block is a live block that lies in a victim.
type Block struct {
	Group segment.GroupKey
	Set   table.SetID
	Page  table.PageKey
	At    int           // which entry of the page
	Epoch storage.Epoch // of a version that has it there
	From  table.Entry
}

// BlockNo is which block of its extent it is.
func (b *Block) BlockNo() int { return int(b.Page.Page)*table.BlocksPerPage + b.At }

// ErrUnreadable is in the error of a block, or of a segment, that the disk does not give back as it was written.
var ErrUnreadable = errors.New("it cannot be read")

// Disk is the disk as far as compaction goes.
type Disk interface {
	Room() Room
	// Segments calls fn with every segment that a table refers to at present, and how much lives in it.
	Segments(fn func(no segment.SegmentNo, s live.Segment))
	// MayEmpty returns nil if a segment could be recycled once its blocks are moved and checkpointed, and they may be moved.
	MayEmpty(no segment.SegmentNo) error
	// References returns how many entries refer to a segment at present.
	References(no segment.SegmentNo) int64
	// Find returns the blocks of a segment that tables refer to and that the segment's records lead to, in the order of tables.
	Find(no segment.SegmentNo) ([]Block, error)
	// Sweep calls fn with blocks of these segments that tables refer to, whatever the records say.
	Sweep(ctx context.Context, nos map[segment.SegmentNo]struct{}, fn func([]Block) error) error
	// Move copies blocks and makes the tables refer to the copies, as far as they still refer to the blocks. At ErrUnreadable the blocks
	// before the one that cannot be read are moved.
	Move(ctx context.Context, blocks []Block) error
	// Checkpoint asks for checkpoints of the replicas soon.
	Checkpoint(groups map[segment.GroupKey]struct{})
	// SyncLatency says how long syncs of the log took since it was asked last.
	SyncLatency() time.Duration
	// Trim gives free segments that are not needed soon back to the file system, a few at a time.
	Trim()
}

// Metrics is told what was done. All methods must return at once.
type Metrics interface {
	Victim()
	Skipped()
	Damaged()
}

// Worker compacts a disk.
type Worker struct {
	disk    Disk
	metrics Metrics
	logger  *slog.Logger
	pace    pace

	// left are segments that are left alone until then, and why; emptied are victims that wait for a checkpoint, and since when, of these
	// groups.
	left    map[segment.SegmentNo]leave
	emptied map[segment.SegmentNo]time.Time
	moved   map[segment.GroupKey]struct{}
	owed    bool                           // one was emptied since checkpoints were asked for
	told    map[segment.SegmentNo]struct{} // segments with a bad block that were reported

	said atomic.Pointer[said]
}

// said is a state, and since when room is short in vain; zero: it is not.
type said struct {
	state storage.CompactionState
	vain  time.Time
}

type leave struct {
	until    time.Time
	stubborn bool // something in it was not found, or not moved
}

// New returns a worker that waits for Run.
func New(d Disk, m Metrics, logger *slog.Logger) *Worker {
	w := &Worker{disk: d, metrics: m, logger: logger, left: map[segment.SegmentNo]leave{}, emptied: map[segment.SegmentNo]time.Time{},
		moved: map[segment.GroupKey]struct{}{}, told: map[segment.SegmentNo]struct{}{}}
	w.pace = pace{room: w.room, latency: d.SyncLatency}
	w.said.Store(&said{state: storage.CompactionIdle})
	return w
}

// State says what the worker does now. It may be called at any time.
func (w *Worker) State() storage.CompactionState { return w.said.Load().state }

// InVain reports whether room has been short for some time and nothing was to be won: who waits for room would wait without end. It may be
// called at any time.
func (w *Worker) InVain() bool {
	s := w.said.Load()
	return !s.vain.IsZero() && time.Since(s.vain) >= vainAfter
}

func (w *Worker) say(s storage.CompactionState) {
	next := said{state: s}
	if s == storage.CompactionNothingToWin || s == storage.CompactionNoRoom {
		if next.vain = w.said.Load().vain; next.vain.IsZero() {
			next.vain = time.Now()
		}
	}
	w.said.Store(&next)
}

// saysMoving says that blocks are moved, for that need.
func (w *Worker) saysMoving(need need) {
	switch {
	case need == urgent:
		w.say(storage.CompactionBehind)
	case w.pace.brake.Part() < brakedBelow:
		w.say(storage.CompactionBraked)
	default:
		w.say(storage.CompactionRunning)
	}
}

// saysWaiting says why nothing is moved although there is a need.
func (w *Worker) saysWaiting(need need) {
	switch {
	case len(w.emptied) > 0 && (need != nothing || w.pace.now.Free < w.pace.now.Reserve):
		w.saysMoving(need) // a checkpoint makes room
	case need == idle || need == nothing:
		w.say(storage.CompactionIdle)
	case !w.roomForCopies():
		w.say(storage.CompactionNoRoom)
	default:
		w.say(storage.CompactionNothingToWin)
	}
}

// Run works until ctx is done.
func (w *Worker) Run(ctx context.Context) {
	tick := clock.NewTimer(every)
	defer tick.Stop()
	trimmed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for w.step(ctx, now) && ctx.Err() == nil {
				now = time.Now()
			}
			if now.Sub(trimmed) >= time.Second {
				trimmed = now
				w.disk.Trim()
			}
			tick.Again()
		}
	}
}

// room is the disk's, with what was emptied.
func (w *Worker) room() Room {
	now := time.Now()
	r := w.disk.Room()
	for no, since := range w.emptied {
		switch err := w.disk.MayEmpty(no); {
		case now.Sub(since) >= emptiedFor || errors.Is(err, storage.ErrNotFound):
			delete(w.emptied, no)
		case err == nil: // else something holds it whatever a checkpoint says, such as a pull
			r.Coming += r.SegmentBytes
		}
	}
	return r
}

// step empties one segment, if that is to be done and possible; false if there is nothing more to do now.
func (w *Worker) step(ctx context.Context, now time.Time) bool {
	need := w.pace.look(now)
	if need == nothing {
		w.saysWaiting(need)
		w.checkpoint()
		return false
	}
	if !w.mayBegin() {
		w.saysWaiting(need)
		w.checkpoint()
		return false
	}
	no, live, ok := w.victim(now, need)
	if !ok {
		w.saysWaiting(need)
		w.checkpoint()
		return need == urgent && w.sweep(ctx, now, 1) || w.sweep(ctx, now, sweepAt)
	}
	w.pace.use = float64(live) / float64(Capacity(w.pace.now.SegmentBytes))
	return w.empty(ctx, no)
}

// mayBegin reports whether there is room for the copies of a round, and not too much waits for checkpoints.
func (w *Worker) mayBegin() bool {
	// I1 and no deadlock: copies never take the last room, which the log needs for what it has promised to take.
	most := max(leastEmptied, int(w.pace.now.Reserve/4/max(1, w.pace.now.SegmentBytes)))
	return len(w.emptied) < most && w.roomForCopies()
}

// checkpoint asks for checkpoints of what was moved.
func (w *Worker) checkpoint() {
	if len(w.moved) > 0 {
		w.disk.Checkpoint(w.moved)
		clear(w.moved)
		w.owed = false
	}
}

// checkpointDue reports whether what was emptied is worth a checkpoint: half of what is to be free waits for one, or is missing.
func (w *Worker) checkpointDue() bool {
	r := &w.pace.now
	half := r.goal() / 2
	return r.Coming >= half || r.Free-r.Reserve < half
}

func (w *Worker) roomForCopies() bool {
	return w.pace.now.Free >= LeastSegments*w.pace.now.SegmentBytes
}

// victim chooses the segment to be emptied.
func (w *Worker) victim(now time.Time, need need) (no segment.SegmentNo, live int64, ok bool) {
	for no, l := range w.left {
		if !now.Before(l.until) {
			delete(w.left, no)
		}
	}
	c := w.candidates(need)
	for _, s := range c.best {
		if w.disk.MayEmpty(s.No) == nil {
			return s.No, s.Live, true
		}
		w.left[s.No] = leave{until: now.Add(refusedFor)}
	}
	return 0, 0, false
}

func (w *Worker) candidates(need need) choice {
	c := choice{capacity: Capacity(w.pace.now.SegmentBytes), maxUse: MaxUse}
	if need == idle {
		c.maxUse = idleUse
	}
	w.disk.Segments(func(no segment.SegmentNo, s live.Segment) {
		if _, left := w.left[no]; !left && s.Refs > 0 {
			c.offer(Candidate{no, s.Own, s.Gap})
		}
	})
	return c
}

// empty moves what lives in a segment.
func (w *Worker) empty(ctx context.Context, no segment.SegmentNo) bool {
	w.metrics.Victim()
	blocks, err := w.disk.Find(no)
	if err == nil {
		err = w.move(ctx, blocks)
	}
	if ctx.Err() != nil {
		return false
	}
	w.settle(no, time.Now(), err)
	w.pace.now = w.room() // before the next victim
	if w.checkpointDue() {
		w.checkpoint()
	}
	return err == nil || errors.Is(err, ErrUnreadable)
}

// move moves blocks at the pace, and notes whose they are.
func (w *Worker) move(ctx context.Context, blocks []Block) error {
	for len(blocks) > 0 {
		n := min(len(blocks), batchBlocks)
		if err := w.pace.wait(ctx, int64(n)*copyBytes); err != nil {
			return err
		}
		w.saysMoving(w.pace.need(time.Now()))
		if w.owed && w.checkpointDue() { // the room went while this one waited: those before need not wait with it
			w.checkpoint()
		}
		for _, b := range blocks[:n] {
			w.moved[b.Group] = struct{}{}
		}
		if err := w.disk.Move(ctx, blocks[:n]); err != nil {
			return err
		}
		blocks = blocks[n:]
	}
	return nil
}

// settle notes what became of a victim.
func (w *Worker) settle(no segment.SegmentNo, now time.Time, err error) {
	if w.disk.References(no) == 0 {
		w.emptied[no], w.owed = now, true
		delete(w.left, no)
		return
	}
	w.metrics.Skipped()
	w.left[no] = leave{until: now.Add(stubbornFor), stubborn: err == nil}
	if errors.Is(err, ErrUnreadable) {
		w.metrics.Damaged()
		if _, told := w.told[no]; !told {
			w.told[no] = struct{}{}
			w.logger.Error("a block cannot be read: its segment is not given back until it is written anew from another replica", "segment", no, "error", err)
		}
	} else if err != nil {
		w.left[no] = leave{until: now.Add(refusedFor)}
	}
}

// sweep goes over all tables to find what the records of stubborn segments do not lead to, if there are at least so many.
func (w *Worker) sweep(ctx context.Context, now time.Time, least int) bool {
	nos := map[segment.SegmentNo]struct{}{}
	for no, l := range w.left {
		if l.stubborn && w.disk.MayEmpty(no) == nil {
			nos[no] = struct{}{}
		}
	}
	if len(nos) < least {
		return false
	}
	err := w.disk.Sweep(ctx, nos, func(blocks []Block) error { return w.move(ctx, blocks) })
	w.checkpoint()
	for no := range nos {
		w.settle(no, now, err)
		if l, left := w.left[no]; left {
			l.stubborn = false // once is enough until its time is over
			w.left[no] = l
		}
	}
	return false
}
