package volume

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// session is one session that is open in every group of the volume.
//
// It goes from usable to closing (rotate) to over. Once it is closing, its attempts are cut short and no outcome is
// decided by retrying. Once it is over, it is closed in every group and windows says what was applied. Nothing of it can
// be applied any more, whatever copies are still on their way.
type session struct {
	id       storage.SessionID
	lanes    []*lane // one per group of trunk.groups
	attempts *attemptClock

	ctx     context.Context // ends when the session begins to close
	cancel  context.CancelFunc
	closing bool // guarded by trunk.mu

	over    chan struct{} // closed by the closing goroutine when every group has closed the session
	windows []*op.Window  // as the lanes; written before over is closed; nil: the group could not say
}

// opening is an attempt to open a session that requests wait for.
type opening struct {
	done chan struct{} // closed when err is final
	err  error
}

// laneOf returns the lane of an extent.
func (t *trunk) laneOf(x storage.ExtentIndex) int { return t.stripes[int(x)%len(t.stripes)] }

// usable returns a session that requests may be sent under, and opens one if there is none. While the session before
// it is being closed, it waits.
func (t *trunk) usable(ctx context.Context) (*session, error) {
	for {
		if s := t.current.Load(); s != nil {
			return s, nil
		}
		wait, o, err := t.nextSession()
		if err != nil {
			return nil, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, storage.E("open session", storage.KindCanceled, t.subject, ctx.Err())
		case <-t.ctx.Done():
			return nil, t.ended()
		}
		if o != nil && o.err != nil {
			return nil, o.err
		}
	}
}

// nextSession returns what to wait for until there may be a session: the end of the one that closes, or an opening.
func (t *trunk) nextSession() (wait <-chan struct{}, o *opening, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failure != nil:
		return nil, nil, t.failure
	case t.session != nil:
		if t.session.closing {
			return t.session.over, nil, nil
		}
		done := make(chan struct{})
		close(done)
		return done, nil, nil
	}
	if t.opening == nil {
		o := &opening{done: make(chan struct{})}
		t.opening = o
		t.wg.Go(func() { t.runOpening(o) })
	}
	return t.opening.done, t.opening, nil
}

func (t *trunk) runOpening(o *opening) {
	s, err := t.establish()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil && t.failure == nil {
		t.session = s
		t.current.Store(s)
	}
	o.err = err
	t.opening = nil
	close(o.done)
	t.broadcastLocked()
}

// establish opens a session in every group. An id that any group refuses is closed everywhere and given up: ids ascend,
// and a group opens none at or below the highest it has seen.
func (t *trunk) establish() (*session, error) {
	for n := 0; ; n++ {
		info, err := t.catalogSession()
		if err != nil {
			return nil, err
		}
		err = t.openInGroups(info)
		if err == nil {
			t.metrics.all.sessions.Inc()
			return t.newSession(info), nil
		}
		if t.ctx.Err() != nil {
			return nil, t.ended()
		}
		t.gateway.config.Logger.Warn("session refused", "volume", t.key.name, "session", info.ID, "error", err)
		if _, closeErr := t.closeInGroups(t.ctx, info.ID); closeErr != nil {
			return nil, closeErr
		}
		t.forgetSession(info.ID)
		if k := storage.KindOf(err); k != storage.KindFenced && k != storage.KindConflict && k != storage.KindExists {
			return nil, err
		}
		t.pause(t.ctx, n, nil)
	}
}

func (t *trunk) newSession(info SessionInfo) *session {
	s := &session{id: info.ID, over: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(t.ctx)
	s.attempts = newAttemptClock(s.ctx, t.gateway.config.AttemptTimeout)
	for _, g := range t.groups {
		s.lanes = append(s.lanes, newLane(g, t.gateway.config.GroupRequests))
	}
	return s
}

// catalogSession returns a session that the catalog has opened and no group has heard of: the one that came with
// opening the volume, or a new one.
func (t *trunk) catalogSession() (SessionInfo, error) {
	t.mu.Lock()
	info := t.fresh
	t.fresh = SessionInfo{}
	t.mu.Unlock()
	if info.ID != 0 {
		return info, nil
	}
	info, err := t.gateway.openSession(t.ctx, t.key, t.attachment.ID)
	if err != nil {
		switch storage.KindOf(err) {
		case storage.KindNotFound, storage.KindFenced, storage.KindPermission, storage.KindConflict: // another machine uses it, or what will not be otherwise again
			t.fail(err)
		}
		return SessionInfo{}, err
	}
	if err := t.accept(info); err != nil {
		return SessionInfo{}, err
	}
	return info, t.closePredecessors(t.ctx, info)
}

// accept takes over what a newer session says of the volume; the volume fails when it is not the same any more.
func (t *trunk) accept(info SessionInfo) error {
	if info.Volume != t.id {
		err := t.errorf(storage.KindNotFound, "open session", "the volume was deleted and another one has its name now")
		t.fail(err)
		return err
	}
	if !slices.Equal(info.Groups, t.placement) {
		err := t.errorf(storage.KindUnsupported, "open session", "the volume's groups have changed; open it again")
		t.fail(err)
		return err
	}
	return t.adopt(VolumeState{Revision: info.Revision, SizeBytes: info.SizeBytes, Epoch: info.Epoch, Generation: info.Generation,
		Limits: info.Limits})
}

// adopt takes over the state of the volume; the volume fails when it is not ours any more.
func (t *trunk) adopt(st VolumeState) error {
	var err error
	switch {
	case st.Deleted:
		err = t.errorf(storage.KindNotFound, "use", "the volume was deleted")
	case st.Lost != "" || st.Generation > t.generation:
		err = t.fencedError(st)
	}
	if err != nil {
		t.fail(err)
		return err
	}
	t.throttle.set(st.Revision, st.Limits)
	raise(&t.sizeBytes, st.SizeBytes)
	raise(&t.epoch, uint64(st.Epoch))
	return nil
}

// openInGroups opens the session in every group, in parallel. It returns nil, or a group's refusal.
func (t *trunk) openInGroups(info SessionInfo) error {
	_, err := t.inGroups(t.ctx, op.Op{Kind: op.OpenSession, Volume: t.id, Session: info.ID}, func(r op.Result, attempts int) error {
		if r.Duplicate && attempts == 1 {
			return t.errorf(storage.KindConflict, "open session", "somebody else has opened it: its numbers are not ours to use")
		}
		return r.Err("open session", t.subject)
	})
	if storage.KindOf(err) == storage.KindNotFound {
		t.fail(err)
	}
	return err
}

// closeInGroups closes the session in every group, in parallel, and returns the windows.
func (t *trunk) closeInGroups(ctx context.Context, id storage.SessionID) ([]*op.Window, error) {
	results, err := t.inGroups(ctx, op.Op{Kind: op.CloseSession, Volume: t.id, Session: id}, func(r op.Result, _ int) error {
		switch r.Kind {
		case storage.KindFenced, storage.KindNotFound: // a newer generation, or a deleted volume: it is as good as closed
			return nil
		case storage.KindConflict: // closed so long ago that the window is forgotten
			return nil
		}
		return r.Err("close session", t.subject)
	})
	windows := make([]*op.Window, len(results))
	for i, r := range results {
		windows[i] = r.Window
	}
	return windows, err
}

// inGroups asks every group of the volume, each until it has a final answer, and returns the answers, in the order of
// t.groups, with the first error that check finds in them.
func (t *trunk) inGroups(ctx context.Context, o op.Op, check func(r op.Result, attempts int) error) ([]op.Result, error) {
	o.Generation, o.Epoch = t.generation, storage.Epoch(t.epoch.Load())
	header := o.AppendHeader(nil)
	results, errs := make([]op.Result, len(t.groups)), make([]error, len(t.groups))
	var wg sync.WaitGroup
	for i, group := range t.groups {
		wg.Go(func() {
			var attempts int
			if results[i], attempts, errs[i] = t.insist(ctx, group, header); errs[i] == nil {
				errs[i] = check(results[i], attempts)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

// insist repeats an operation that may be repeated until a group has decided on it, or ctx or the trunk has ended.
func (t *trunk) insist(ctx context.Context, group storage.GroupID, header []byte) (res op.Result, attempts int, err error) {
	var before error
	for n := 0; ; n++ {
		res, err = t.gateway.config.Cluster.Propose(t.attempts.context(), group, [][]byte{header})
		kind := kindOf(res, err)
		switch {
		case ctx.Err() != nil && (err != nil || retryable(kind)):
			return op.Result{}, n + 1, storage.E("ask group", storage.KindCanceled, t.subject, endedAfter(ctx, before, err))
		case t.ctx.Err() != nil && (err != nil || retryable(kind)):
			return op.Result{}, n + 1, t.ended()
		case err != nil || retryable(kind):
			// Only a result is the group's decision; an error may be that of somebody on the way.
			t.metrics.retry(kind)
			if before = err; err == nil {
				before = res.Err("ask group", t.subject)
			}
			t.pause(ctx, n, nil)
		default:
			return res, n + 1, nil
		}
	}
}

// rotate begins to close a session in every group; it does not wait. Requests in flight learn from the windows what
// was applied. then, if not nil, is told to the log.
func (t *trunk) rotate(s *session, reason string, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.session != s || s.closing || t.failure != nil {
		return
	}
	s.closing = true
	t.current.Store(nil)
	s.cancel()
	t.metrics.rotations(reason)
	if reason != "close" {
		t.gateway.config.Logger.Warn("session is closed and its requests are decided by its windows",
			"volume", t.key.name, "session", s.id, "reason", reason, "error", cause)
	}
	t.wg.Go(func() { t.closeSession(s) })
}

// closeSession ends what rotate began. It gives up only when the trunk ends; whoever waits for over watches that too.
func (t *trunk) closeSession(s *session) {
	for n := 0; ; n++ {
		windows, err := t.closeInGroups(t.ctx, s.id)
		if err == nil {
			s.windows = windows
			break
		}
		if t.ctx.Err() != nil {
			return
		}
		t.gateway.config.Logger.Error("session cannot be closed", "volume", t.key.name, "session", s.id, "error", err)
		t.pause(t.ctx, n, nil)
	}
	t.mu.Lock()
	t.session = nil
	t.forgetting++
	close(s.over)
	t.broadcastLocked()
	t.mu.Unlock()

	t.forgetSession(s.id)
	t.mu.Lock()
	t.forgetting--
	t.broadcastLocked()
	t.mu.Unlock()
}

// forgetSession tells the catalog that a session is closed. One attempt: what the catalog did not hear of it, it finds
// out when the session's heartbeats stop.
func (t *trunk) forgetSession(id storage.SessionID) {
	if err := t.gateway.config.Cluster.CloseSession(t.gateway.attempts.context(), id); err != nil {
		t.gateway.config.Logger.Warn("catalog not told that a session is closed", "volume", t.key.name, "session", id, "error", err)
	}
}

// forgetLast tells the catalog of a session that the trunk still has when it ends. No group has heard of that session,
// or the groups need not close it, because they refuse the whole volume or its generation.
func (t *trunk) forgetLast() {
	t.mu.Lock()
	id := t.fresh.ID
	if k := storage.KindOf(t.failure); t.session != nil && (k == storage.KindFenced || k == storage.KindNotFound) {
		id = t.session.id
	}
	t.fresh = SessionInfo{}
	t.mu.Unlock()
	if id != 0 {
		t.forgetSession(id)
	}
}

// closePredecessors closes, in every group, the sessions that earlier instances of this gateway have left: what they had
// in flight must not land among what is served now.
func (t *trunk) closePredecessors(ctx context.Context, info SessionInfo) error {
	for _, id := range info.Predecessors {
		if _, err := t.closeInGroups(ctx, id); err != nil {
			return err
		}
		t.forgetSession(id)
	}
	return nil
}

// watch follows the volume's state until the trunk ends.
func (t *trunk) watch() {
	var revision uint64
	for n := 0; t.ctx.Err() == nil; {
		st, err := t.gateway.config.Cluster.WatchVolume(t.ctx, t.id, t.attachment.ID, revision)
		switch {
		case err == nil:
			n, revision = 0, st.Revision
			if t.adopt(st) != nil {
				return
			}
		case storage.KindOf(err) == storage.KindNotFound:
			t.fail(err)
			return
		default:
			t.pause(t.ctx, n, nil)
			n++
		}
	}
}

// pause sleeps before attempt n+1, shorter if ctx, other (which may be nil) or the trunk ends.
func (t *trunk) pause(ctx context.Context, n int, other <-chan struct{}) {
	c := &t.gateway.config
	select {
	case <-time.After(backoffFor(n, c.RetryMin, c.RetryMax, c.Jitter())):
	case <-ctx.Done():
	case <-other:
	case <-t.ctx.Done():
	}
}

// kindOf returns the kind of an attempt's outcome.
func kindOf(res op.Result, err error) storage.Kind {
	if err == nil {
		return res.Kind
	}
	return storage.KindOf(err)
}

// retryable reports whether an attempt with this outcome says nothing final.
func retryable(k storage.Kind) bool {
	switch k {
	case storage.KindUnavailable, storage.KindNotLeader, storage.KindCanceled, storage.KindIO:
		return true
	}
	return false
}

// fencedError says why the volume is not ours any more, and who has it since.
func (t *trunk) fencedError(st VolumeState) error {
	why := st.Lost
	if why == "" {
		why = "another holder has taken the volume over: its generation is " + st.Generation.String() + ", ours was " + t.generation.String()
	}
	return storage.E("use", storage.KindFenced, t.subject, errors.New(why))
}
