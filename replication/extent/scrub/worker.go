package scrub

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// every is how often there is looked for something to do.
	every = time.Second
	// retryEvery is how often blocks are tried again that could not be mended, and segments that could not be emptied yet.
	retryEvery = 15 * time.Second
	// lostEvery is how often the same is tried where the last try was in vain for a reason that stays: no replica had the block, or something
	// in the segment could not be moved.
	lostEvery = 10 * time.Minute
	// saveEvery is how often where the pass is is stored.
	saveEvery = 10 * time.Second
	// askedAgain is how long a segment that was asked for is not read again for that.
	askedAgain = 10 * time.Minute
	// listEvery is how often the segments are listed while a pass reads them: a list takes as long as there are segments.
	listEvery = time.Minute
)

// Bad is a block to which a table refers and that the disk does not give back as it was written.
type Bad struct {
	compact.Block
	Why error
}

// Found is what a look at a part of the disk has brought.
type Found struct {
	// Bytes were read, Blocks of them live.
	Bytes  int64
	Blocks int
	Bad    []Bad
	// DamagedRecords and StrayBytes are those of segment.Checked, DamagedPages are pages of tables that cannot be decoded.
	DamagedRecords int
	StrayBytes     int64
	DamagedPages   int
	// Doubtful: more lives there than was found, or may.
	Doubtful bool
}

// Outcome is what became of a bad block.
type Outcome uint8

// The outcomes.
const (
	Gone   Outcome = iota // it was overwritten or moved, or the disk gives it back
	Mended                // it was written anew
	Later                 // a replica may have it that does not answer, or has other bytes there, or there is no room
	Lost                  // all replicas say that they cannot read it
)

// Disk is the disk as far as scrubbing goes.
type Disk interface {
	// Sealed returns the sealed segments in ascending order, or why nothing can be read any more.
	Sealed() ([]segment.SegmentInfo, error)
	// Gone reports whether a segment was recycled. Its number is never used again.
	Gone(no segment.SegmentNo) bool
	// Check reads a segment and looks at the blocks that live in it. It calls wait before it reads. Pages of tables that are damaged are
	// left out, and make the segment doubtful. KindNotFound if the segment is gone, KindIO if too little of it can be read to go on; then
	// what was found counts. With an error of another kind it may be looked at again later.
	Check(no segment.SegmentNo, wait func(bytes int64) error) (Found, error)
	// Tables looks at the next pages of the tables from a key on, and at those of their blocks that lie in one of the segments. next is nil
	// at the end. Pages that are damaged are counted and left out. With an error it may be asked again from the same key.
	Tables(from []byte, nos map[segment.SegmentNo]struct{}, wait func(bytes int64) error) (f Found, next []byte, err error)
	// Mend writes a block anew from another replica. The error says why it is not, with Later and Lost.
	Mend(ctx context.Context, b compact.Block) (Outcome, error)
	// Empty moves what lives in a damaged segment elsewhere, so that the segment is recycled after the next checkpoint, and what is damaged
	// in it is gone. KindConflict while the log needs the segment, KindNotFound if it is gone.
	Empty(ctx context.Context, no segment.SegmentNo, wait func(bytes int64) error) error
	// SyncLatency says how long syncs of the log took since it was asked last.
	SyncLatency() time.Duration
	// Load returns what Save has stored; nil if there is nothing.
	Load() ([]byte, error)
	Save(state []byte) error
}

// Counts are totals since the start.
type Counts struct {
	Bytes, Blocks, Found, Mended, DamagedRecords, StrayBytes int64
}

// Worker scrubs a disk, and has others verify parts of it.
type Worker struct {
	disk     Disk
	logger   *slog.Logger
	interval time.Duration
	turn     chan struct{} // of those who verify: Turn
	turns    bucket        // whoever has the turn
	pace     pace          // Run's own, like the times
	saved    time.Time
	retried  time.Time
	// held is until when nothing is read, because something could not be for a reason that does not last; why says which.
	held time.Time
	why  string
	// left are the segments that the pass has still to read, in ascending order, as listed at listed.
	left   []segment.SegmentInfo
	listed time.Time

	mu     sync.Mutex // guards all below
	state  state
	counts Counts
	todo   int64 // bytes that the pass has still to read, at the last look
	asked  map[segment.SegmentNo]struct{}
	lately map[segment.SegmentNo]time.Time // when what was asked for was read
	bad    map[segment.Position]*known     // at most maxListed
	// damaged are segments that are to be emptied, and when that is tried; at most maxListed.
	damaged map[segment.SegmentNo]time.Time
}

// known is a block that is not mended.
type known struct {
	Bad
	told, lost bool
	tried      time.Time
}

// New returns a worker that waits for Run. A pass begins each interval; 0: none does, and only what is asked for is read.
func New(d Disk, interval time.Duration, logger *slog.Logger) *Worker {
	return &Worker{disk: d, interval: interval, logger: logger, pace: pace{latency: d.SyncLatency}, turn: make(chan struct{}, 1), asked: map[segment.SegmentNo]struct{}{},
		lately: map[segment.SegmentNo]time.Time{}, bad: map[segment.Position]*known{}, damaged: map[segment.SegmentNo]time.Time{}}
}

// Ask has a segment read soon, because something in it could not be. It does not block.
func (w *Worker) Ask(no segment.SegmentNo) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.asked) < maxListed && time.Since(w.lately[no]) >= askedAgain {
		w.asked[no] = struct{}{}
	}
}

// Run works until ctx is done.
func (w *Worker) Run(ctx context.Context) {
	w.load()
	tick := clock.NewTimer(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for w.step(ctx) && ctx.Err() == nil {
			}
			w.pace.rest(time.Now())
			tick.Again()
		}
	}
}

// load goes on where the pass was, and looks first at the segments with blocks that were not mended.
func (w *Worker) load() {
	b, err := w.disk.Load()
	var s state
	if err == nil && b != nil {
		s, err = decodeState(b)
	}
	if err != nil {
		w.logger.Warn("where the scrub was is not known: it begins anew", "error", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, no := range s.Suspects {
		w.asked[no] = struct{}{}
	}
	w.state = s
}

// save stores where the pass is. If that fails a restart reads again what was read since.
func (w *Worker) save(now time.Time) {
	w.saved = now
	w.mu.Lock()
	suspects := map[segment.SegmentNo]struct{}{}
	for at := range w.bad {
		suspects[at.Segment()] = struct{}{}
	}
	for _, no := range slices.AppendSeq(slices.Collect(maps.Keys(w.damaged)), maps.Keys(w.asked)) {
		if len(suspects) < maxListed {
			suspects[no] = struct{}{}
		}
	}
	w.state.Suspects = slices.Sorted(maps.Keys(suspects))
	b := w.state.encode()
	w.mu.Unlock()
	if err := w.disk.Save(b); err != nil {
		w.logger.Debug("where the scrub is is not stored", "error", err)
	}
}

// step does one piece of what is to be done; false if there is nothing.
func (w *Worker) step(ctx context.Context) bool {
	now := time.Now()
	if now.Sub(w.retried) >= retryEvery {
		w.retried = now
		w.retry(ctx, now)
		w.emptyDamaged(ctx, now)
	}
	if now.Before(w.held) {
		return false
	}
	if no, ok := w.nextAsked(now); ok {
		w.pace.rate = askedRate
		_, err := w.check(ctx, no)
		if passes(err) && ctx.Err() == nil {
			w.hold(now, err)
			w.askAgain(no)
		}
		w.save(now)
		return true
	}
	if w.interval == 0 || !w.passing(now) || !w.list(now) {
		return false
	}
	err := w.advance(ctx, now)
	if ctx.Err() != nil {
		return true
	}
	if err != nil {
		w.hold(now, err)
	} else {
		w.why = ""
	}
	if now.Sub(w.saved) >= saveEvery || w.passEnded() {
		w.save(now)
	}
	return true
}

// passes reports whether an error of Disk is one after which the same may be tried again.
func passes(err error) bool {
	return err != nil && !errors.Is(err, storage.ErrNotFound) && storage.KindOf(err) != storage.KindIO
}

// hold has nothing read for a while, and tells why, once for each reason.
func (w *Worker) hold(now time.Time, err error) {
	w.held = now.Add(retryEvery)
	if text := err.Error(); text != w.why {
		w.why = text
		w.logger.Warn("the scrub waits, and goes on where it is", "error", err)
	}
}

// list brings the list of what the pass has still to read up to date; false if nothing can be read any more.
func (w *Worker) list(now time.Time) bool {
	if since := now.Sub(w.listed); since >= 0 && since < listEvery {
		return true
	}
	sealed, err := w.disk.Sealed()
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.state
	if s.End == 0 { // the pass begins
		if n := len(sealed); n > 0 {
			s.End = sealed[n-1].No + 1
		}
	}
	w.listed, w.todo = now, 0
	w.left = slices.DeleteFunc(sealed, func(i segment.SegmentInfo) bool { return i.No < s.Next || i.No >= s.End })
	for _, i := range w.left {
		w.todo += i.UsedBytes
	}
	return true
}

// nextLocked returns the next segment of the pass; one without a number at the end.
func (w *Worker) nextLocked() (next segment.SegmentInfo) {
	for len(w.left) > 0 {
		if next = w.left[0]; next.No >= w.state.Next {
			return next
		}
		w.todo -= next.UsedBytes
		w.left = w.left[1:]
	}
	return segment.SegmentInfo{}
}

func (w *Worker) nextAsked(now time.Time) (no segment.SegmentNo, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for no := range w.asked {
		delete(w.asked, no)
		maps.DeleteFunc(w.lately, func(_ segment.SegmentNo, at time.Time) bool { return now.Sub(at) >= askedAgain })
		w.lately[no] = now
		return no, true
	}
	return 0, false
}

// askAgain has a segment read when the worker goes on.
func (w *Worker) askAgain(no segment.SegmentNo) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[no] = struct{}{}
}

// passing reports whether a pass is under way, and begins one when it is time.
func (w *Worker) passing(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.state
	if since := now.Sub(s.Begun); !s.Begun.IsZero() && since >= 0 && (!s.Done || since < w.interval) {
		return !s.Done
	}
	s.begin(now)
	w.left, w.listed = nil, time.Time{}
	return true
}

func (w *Worker) passEnded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.Done
}

// advance reads the next segment of the pass, or the next pages. After an error the pass is where it was.
func (w *Worker) advance(ctx context.Context, now time.Time) error {
	w.mu.Lock()
	next, s := w.nextLocked(), w.state
	w.pace.rate = rate(w.todo, s.Begun, now, w.interval)
	w.mu.Unlock()
	if s.Tables || next.No == 0 {
		return w.tables(ctx, s)
	}
	f, err := w.check(ctx, next.No)
	if passes(err) || ctx.Err() != nil {
		return err // it is read again
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Next = next.No + 1
	w.state.Bytes += f.Bytes
	if f.Doubtful || storage.KindOf(err) == storage.KindIO {
		w.state.doubt(next.No)
	}
	return nil
}

// check reads a segment, and mends what is bad in it.
func (w *Worker) check(ctx context.Context, no segment.SegmentNo) (Found, error) {
	f, err := w.disk.Check(no, func(n int64) error { return w.pace.wait(ctx, n) })
	w.note(ctx, f)
	if storage.KindOf(err) == storage.KindIO && ctx.Err() == nil && w.noteDamaged(no) {
		w.logger.Error("a segment cannot be read: its blocks are looked for in the tables", "segment", no, "error", err)
	}
	if !f.sound() && w.noteDamaged(no) {
		w.logger.Warn("a segment is not as it was written: what lives in it is moved elsewhere", "segment", no, "damaged_records", f.DamagedRecords, "stray_bytes", f.StrayBytes,
			"live_blocks_damaged", len(f.Bad))
	}
	return f, err
}

func (f *Found) sound() bool { return f.DamagedRecords == 0 && f.StrayBytes == 0 && len(f.Bad) == 0 }

// tables looks at the next pages. After an error the pass is where it was, and not complete.
func (w *Worker) tables(ctx context.Context, s state) error {
	nos := map[segment.SegmentNo]struct{}{}
	for _, no := range s.Doubtful {
		nos[no] = struct{}{}
	}
	f, next, err := w.disk.Tables(s.From, nos, func(n int64) error { return w.pace.wait(ctx, n) })
	w.note(ctx, f)
	if err != nil || ctx.Err() != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Tables, w.state.From = true, next
	w.state.Bytes += f.Bytes
	w.state.DamagedPages += f.DamagedPages
	if next == nil {
		w.state.end(time.Now())
	}
	return nil
}

// note counts what was found, and mends what is bad and was not known.
func (w *Worker) note(ctx context.Context, f Found) {
	w.mu.Lock()
	c := &w.counts
	c.Bytes += f.Bytes
	c.Blocks += int64(f.Blocks)
	c.DamagedRecords += int64(f.DamagedRecords)
	c.StrayBytes += f.StrayBytes
	var fresh []*known
	for _, b := range f.Bad {
		if w.bad[b.From.Position()] == nil {
			c.Found++
			fresh = append(fresh, &known{Bad: b})
		}
	}
	w.mu.Unlock()
	w.mend(ctx, fresh)
}

// noteDamaged has a segment emptied; false if that is so already, or too many are.
func (w *Worker) noteDamaged(no segment.SegmentNo) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.damaged[no]; known || len(w.damaged) >= maxListed {
		return false
	}
	w.damaged[no] = time.Time{}
	return true
}

// emptyDamaged empties segments that are damaged, once nothing in them waits to be mended, and forgets those that were recycled.
func (w *Worker) emptyDamaged(ctx context.Context, now time.Time) {
	w.mu.Lock()
	maps.DeleteFunc(w.damaged, func(no segment.SegmentNo, _ time.Time) bool { return w.disk.Gone(no) })
	due := maps.Clone(w.damaged)
	maps.DeleteFunc(due, func(_ segment.SegmentNo, at time.Time) bool { return now.Before(at) })
	for at := range w.bad {
		delete(due, at.Segment())
	}
	w.mu.Unlock()
	for _, no := range slices.Sorted(maps.Keys(due)) {
		w.pace.rate = askedRate
		err := w.disk.Empty(ctx, no, func(n int64) error { return w.pace.wait(ctx, n) })
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		switch {
		case errors.Is(err, storage.ErrNotFound):
			delete(w.damaged, no)
		case !errors.Is(err, storage.ErrConflict):
			w.damaged[no] = now.Add(lostEvery)
		}
		w.mu.Unlock()
	}
}

// retry tries again what could not be mended.
func (w *Worker) retry(ctx context.Context, now time.Time) {
	w.mu.Lock()
	due := slices.Collect(maps.Values(w.bad))
	due = slices.DeleteFunc(due, func(k *known) bool { return k.lost && now.Sub(k.tried) < lostEvery })
	w.mu.Unlock()
	slices.SortFunc(due, func(a, b *known) int { return cmp.Compare(a.From.Position(), b.From.Position()) })
	w.mend(ctx, due)
}

// mend mends blocks, and counts what became of them. At one that may be had later the group's others wait, too: each would wait for the same
// replica.
func (w *Worker) mend(ctx context.Context, blocks []*known) (n [Lost + 1]int) {
	waits := map[segment.GroupKey]error{}
	for _, k := range blocks {
		out, err := Later, waits[k.Group]
		if err == nil {
			out, err = w.disk.Mend(ctx, k.Block)
		}
		if ctx.Err() != nil {
			return n
		}
		if out == Later {
			waits[k.Group] = err
		}
		n[out]++
		w.settle(k, out, err)
	}
	return n
}

// settle notes what became of a block, and tells of it once.
func (w *Worker) settle(k *known, out Outcome, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := k.From.Position()
	k.tried = time.Now()
	if out == Gone || out == Mended {
		delete(w.bad, at)
		if out == Mended {
			w.counts.Mended++
		}
		return
	}
	if len(w.bad) < maxListed || w.bad[at] != nil {
		w.bad[at] = k
	}
	args := []any{"group", k.Group, "volume", k.Page.Volume, "extent", k.Page.Extent, "block", k.BlockNo(), "at", at.String(), "why", k.Why, "error", err}
	switch {
	case out == Lost && !k.lost:
		k.lost = true
		w.logger.Error("a block is lost: no replica can read it. Reads of it fail until it is overwritten, or a replica that has it is back", args...)
	case out == Later && !k.told && !k.lost:
		k.told = true
		w.logger.Warn("a block is damaged, and not written anew yet; it is tried again", args...)
	}
}

// Counts returns what was done since the start.
func (w *Worker) Counts() Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}

// Report says how the disk is, as far as it was looked at.
func (w *Worker) Report() storage.StoreScrub {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := storage.StoreScrub{Interval: w.interval, LastPass: w.state.LastEnded, MendedBlocks: w.counts.Mended,
		DamagedPages: int64(max(w.state.DamagedPages, w.state.LastDamagedPages)), DamagedSegments: int64(len(w.damaged))}
	if !w.state.Begun.IsZero() && !w.state.Done {
		r.Begun = w.state.Begun
		if all := w.state.Bytes + w.todo; all > 0 {
			r.Part = float64(w.state.Bytes) / float64(all)
		}
	}
	for _, k := range w.bad {
		if !k.lost {
			r.WaitingBlocks++
			continue
		}
		r.LostBlocks++
		r.Lost = append(r.Lost, storage.LostBlock{Group: k.Group.Group, Volume: k.Page.Volume, Extent: k.Page.Extent, Block: k.BlockNo()})
	}
	slices.SortFunc(r.Lost, storage.LostBlock.Compare)
	r.Lost = r.Lost[:min(len(r.Lost), storage.MaxLostListed)]
	return r
}
