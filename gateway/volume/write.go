package volume

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// sending brings one piece to a known outcome. It is what is left of a request when its caller goes.
type sending struct {
	piece   *piece
	session *session // nil: no number is held
	lane    int
	seq     uint64
	epoch   storage.Epoch // that the header carries

	attempts int // under this number, but for those that the leader found damaged
	damaged  int // attempts in a row that the leader found damaged
	unread   int // of attempts, those that ended with KindIO: nothing was proposed
	reissues int // sessions that ended under this piece
	io       unreadable
	unsure   error // a final refusal after more than one attempt: the windows say whether an earlier one was applied
}

// errLeft says that the caller's context ended while the piece's outcome is unknown.
var errLeft = errors.New("the caller has left")

// errDropped is the outcome of an orphaned piece that was not applied and never will be.
var errDropped = storage.E("mutate", storage.KindCanceled, "", errors.New("not applied: the request's connection has ended"))

// send brings a piece to a known outcome, for as long as ctx lasts; afterwards the outcome is found out in the
// background, from a copy of the payload. The piece holds its share of the bytes in flight meanwhile.
func (t *trunk) send(ctx context.Context, pc *piece) error {
	if err := t.acquire(ctx, pc.weight); err != nil {
		return err
	}
	f := sending{piece: pc}
	err := t.carryOut(ctx, &f)
	if !errors.Is(err, errLeft) {
		t.giveBack(pc.weight)
		return err
	}
	t.detach(f)
	return storage.E("mutate", storage.KindCanceled, t.subject, ctx.Err())
}

// detach lets a sending go on without its caller.
func (t *trunk) detach(f sending) {
	pc := *f.piece
	pc.payload = bytes.Clone(pc.payload)
	pc.header, pc.sums = bytes.Clone(pc.header), append([]uint32(nil), pc.sums...)
	pc.op.Sums = pc.sums
	f.piece = &pc
	r := pc.req
	r.refs.Add(1)
	t.mu.Lock()
	t.orphanLocked(r)
	t.mu.Unlock()
	t.wg.Go(func() {
		if err := t.carryOut(t.ctx, &f); err != nil && t.ctx.Err() == nil {
			t.gateway.config.Logger.Info("request of a caller that left", "volume", t.key.name, "outcome", err)
		}
		t.giveBack(pc.weight)
		t.unref(r)
	})
}

// carryOut returns the outcome of the piece, or errLeft when ctx ended and a number is held that may have been sent.
func (t *trunk) carryOut(ctx context.Context, f *sending) error {
	for {
		if f.session == nil {
			if err := t.takeNumber(ctx, f); err != nil {
				return err
			}
		}
		done, err := t.try(ctx, f)
		if done {
			return err
		}
		if f.reissues > 1 {
			t.pause(ctx, f.reissues, nil)
		}
	}
}

// takeNumber takes a number of the present session. Nothing is in flight for the piece before it, nor when it fails.
func (t *trunk) takeNumber(ctx context.Context, f *sending) error {
	for {
		if f.piece.req.orphaned.Load() {
			return errDropped
		}
		s, err := t.usable(ctx)
		if err != nil {
			return err
		}
		i := t.laneOf(f.piece.op.Extent)
		seq, ok := s.lanes[i].take(ctx, s.ctx.Done())
		switch {
		case !ok && ctx.Err() != nil:
			return storage.E("mutate", storage.KindCanceled, t.subject, ctx.Err())
		case !ok:
			continue // the session is closing
		}
		f.session, f.lane, f.seq, f.attempts, f.damaged, f.unread = s, i, seq, 0, 0, 0
		return nil
	}
}

// try repeats the piece under its number until the outcome is known (done), or the session is over and the piece was
// not applied under it (not done: f.session is nil again).
func (t *trunk) try(ctx context.Context, f *sending) (done bool, err error) {
	s := f.session
	lane := s.lanes[f.lane]
	for {
		if s.ctx.Err() != nil {
			return t.decide(ctx, f)
		}
		f.epoch = storage.Epoch(t.epoch.Load())
		data := f.piece.encode(s.id, f.seq, f.epoch, t.generation)
		res, err := t.gateway.config.Cluster.Propose(s.attempts.context(), lane.group, data)
		f.attempts++
		switch kind := kindOf(res, err); {
		case kind == storage.KindNone:
			lane.finish(f.seq)
			return true, nil
		case kind == storage.KindIO && err != nil:
			if done, err := t.unreadable(f, err); done {
				return true, err
			}
		case retryable(kind):
			t.metrics.retry(kind)
			if kind == storage.KindNotLeader && f.attempts == 1 {
				continue // the cluster has heard the hint
			}
		case kind == storage.KindFenced:
			t.metrics.retry(kind)
			if t.refresh(s.attempts.context()) && err == nil && res.Detail == 0 { // neither epoch nor generation
				t.rotate(s, "fenced", res.Err("mutate", t.subject))
			}
		case kind == storage.KindNotFound && err == nil:
			t.fail(res.Err("mutate", t.subject))
			return true, t.ended()
		case kind == storage.KindCorrupt && err != nil && f.damagedOnTheWay():
			t.metrics.retry(kind)
		case kind == storage.KindConflict, kind == storage.KindNotFound:
			// A block that was merged in another term, or a node that does not know the group: nothing final.
			t.metrics.retry(kind)
			t.refresh(s.attempts.context())
		default:
			// Guards I1: a number is free again only if the group has refused it, or the leader has, for lack of space or
			// because of damage, and nothing else was sent under it. Any other error may come from an answer which cannot be
			// read. If the number were given back then, the next request under it would be taken for a duplicate of the one
			// applied.
			free := f.attempts == 1 && (err == nil && kind != storage.KindInternal || kind == storage.KindNoSpace) ||
				f.attempts == 0 && kind == storage.KindCorrupt
			err = refusal(res, err, t.subject)
			if free {
				lane.giveBack(f.seq)
				return true, err
			}
			f.unsure = err
			t.rotate(s, "refused after retries", err)
		}
		if ctx.Err() != nil && t.ctx.Err() == nil {
			return true, errLeft
		}
		if s.ctx.Err() == nil {
			t.pause(ctx, max(f.attempts+f.damaged, 1)-1, s.ctx.Done())
		}
	}
}

// damagedOnTheWay notes that the leader has refused the last attempt before it proposed anything, because the request fails
// its checksums, or a block that it is to be merged with does. It reports whether another attempt is worth it: a bit that
// flipped on the way does not flip again, one that flipped in memory stays.
func (f *sending) damagedOnTheWay() bool {
	f.attempts-- // it has left nothing behind
	f.damaged++
	return f.damaged < maxDamaged
}

// maxDamaged is how many attempts in a row may be found damaged until the request has failed.
const maxDamaged = 2

// unreadable takes the answer that a block which the piece changes in part cannot be read by any replica. After a while that
// is the piece's outcome, so that its number does not hold up the lane. Guards I1: the number is free only if that was the
// answer to everything that was sent under it; else the session's windows say what was applied.
func (t *trunk) unreadable(f *sending, err error) (done bool, outcome error) {
	t.metrics.retry(storage.KindIO)
	f.unread++
	if !f.io.past(unreadableTimeout) {
		return false, nil
	}
	err = refusal(op.Result{}, err, t.subject)
	if f.unread == f.attempts {
		f.session.lanes[f.lane].giveBack(f.seq)
		return true, err
	}
	f.unsure = err
	t.rotate(f.session, "block cannot be read", err)
	return false, nil
}

// decide waits until the session is closed in every group. Its window says whether the piece was applied; if it was
// not, nothing that was sent for it will be.
func (t *trunk) decide(ctx context.Context, f *sending) (done bool, err error) {
	s := f.session
	select {
	case <-s.over:
	default:
		select {
		case <-s.over:
		case <-t.ctx.Done():
			return true, t.ended()
		case <-ctx.Done():
			return true, errLeft
		}
	}
	w := s.windows[f.lane]
	switch {
	case w != nil && w.Applied(f.seq):
		return true, nil
	case f.unsure != nil:
		return true, f.unsure
	case w == nil && f.attempts > 0:
		return true, t.errorf(storage.KindUnavailable, "mutate",
			"whether the request was applied is not known: its session ended and the group kept no record of it")
	case f.piece.req.orphaned.Load():
		return true, errDropped
	}
	f.session = nil
	f.reissues++
	return false, nil
}

// refresh asks the catalog for the volume's present state and takes it over. It reports whether the volume is still
// ours, as far as the catalog could be asked.
func (t *trunk) refresh(attempt context.Context) bool {
	st, err := t.gateway.config.Cluster.WatchVolume(attempt, t.id, t.attachment.ID, 0)
	if storage.KindOf(err) == storage.KindNotFound {
		t.fail(err)
	} else if err == nil {
		_ = t.adopt(st) // a volume that is not ours any more has failed by it
	}
	return t.ctx.Err() == nil
}

func refusal(res op.Result, err error, subject string) error {
	if err != nil {
		return storage.E("mutate", storage.KindOf(err), subject, err)
	}
	return res.Err("mutate", subject)
}

// single is a mutation of one piece, with its memory.
type single struct {
	request request
	piece   piece
}

var (
	singles = sync.Pool{New: func() any { return new(single) }}
	pieces  = sync.Pool{New: func() any { return new(piece) }}
)

// mutateOne sends one part.
func (v *Volume) mutateOne(ctx context.Context, p part, payload []byte) error {
	t := v.trunk
	one := singles.Get().(*single)
	if err := t.begin(ctx, v, &one.request); err != nil {
		singles.Put(one)
		return err
	}
	one.piece.fill(&one.request, p, payload)
	err := t.send(ctx, &one.piece)
	one.piece.release()
	if t.unref(&one.request) {
		one.request.volume, one.request.ctx = nil, nil
		singles.Put(one)
	}
	return err
}

// mutateAll sends the parts that next cuts off [off, end), a bounded number at a time, and returns the first error.
// After an error no further part is begun. payload returns the bytes of a part that is not cleared.
func (v *Volume) mutateAll(ctx context.Context, off, end int64, next func(off, end int64) part, payload func(part) []byte) error {
	first := next(off, end)
	if first.end() >= end {
		return v.mutateOne(ctx, first, payload(first))
	}
	t := v.trunk
	r := new(request)
	if err := t.begin(ctx, v, r); err != nil {
		return err
	}
	defer t.unref(r)

	parts := (end-off)/storage.MaxEntryPayloadBytes + 2
	return v.sendParts(ctx, r, &cutter{next: next, off: off, end: end}, payload, helpers{n: min(requestParallel, parts) - 1})
}

// sendParts sends the parts that cut hands out.
func (v *Volume) sendParts(ctx context.Context, r *request, cut *cutter, payload func(part) []byte, h helpers) error {
	return cut.each(ctx, "mutate", v.trunk.subject, h, func(p part) error {
		pc := pieces.Get().(*piece)
		pc.fill(r, p, payload(p))
		err := v.trunk.send(ctx, pc)
		pc.release()
		pieces.Put(pc)
		return err
	})
}

// helpers says how many goroutines work on the parts of a request beside the one that was called.
type helpers struct {
	n  int64
	of *semaphore.Weighted // of them, as many as there are left here; nil: all
}

// cutter hands out the parts of a range to several goroutines.
type cutter struct {
	next func(off, end int64) part

	mu       sync.Mutex
	off, end int64 // what is not handed out yet; guarded by mu
	err      error // the first; guarded by mu
}

// each does something with every part, with a bounded number of them at a time, and returns the first error. After an error, or
// when ctx has ended, no further part is begun.
func (c *cutter) each(ctx context.Context, what, subject string, h helpers, do func(part) error) error {
	work := func() {
		for ctx.Err() == nil {
			p, ok := c.take()
			if !ok {
				break
			}
			if err := do(p); err != nil {
				c.stop(err)
			}
		}
	}
	// These goroutines end before this function returns.
	var wg sync.WaitGroup
	for range h.n {
		if h.of != nil && !h.of.TryAcquire(1) {
			break
		}
		wg.Go(func() {
			work()
			if h.of != nil {
				h.of.Release(1)
			}
		})
	}
	work()
	wg.Wait()
	switch {
	case c.err != nil:
		return c.err
	case c.off < c.end:
		return storage.E(what, storage.KindCanceled, subject, ctx.Err())
	}
	return nil
}

func (c *cutter) take() (part, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.off >= c.end {
		return part{}, false
	}
	p := c.next(c.off, c.end)
	c.off = p.end()
	return p, true
}

func (c *cutter) stop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}
