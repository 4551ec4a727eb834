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
	lanes    []*lane // one per group of device.groups
	attempts *attemptClock

	ctx     context.Context // ends when the session begins to close
	cancel  context.CancelFunc
	closing bool // guarded by device.mu

	over    chan struct{} // closed by the closing goroutine when every group has closed the session
	windows []*op.Window  // as the lanes; written before over is closed; nil: the group could not say
}

// opening is an attempt to open a session that requests wait for.
type opening struct {
	done chan struct{} // closed when err is final
	err  error
}

// laneOf returns the lane of an extent.
func (d *device) laneOf(x storage.ExtentIndex) int { return d.stripes[int(x)%len(d.stripes)] }

// usable returns a session that requests may be sent under, and opens one if there is none. While the session before
// it is being closed, it waits.
func (d *device) usable(ctx context.Context) (*session, error) {
	for {
		if s := d.current.Load(); s != nil {
			return s, nil
		}
		wait, o, err := d.nextSession()
		if err != nil {
			return nil, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, storage.E("open session", storage.KindCanceled, d.subject, ctx.Err())
		case <-d.ctx.Done():
			return nil, d.ended()
		}
		if o != nil && o.err != nil {
			return nil, o.err
		}
	}
}

// nextSession returns what to wait for until there may be a session: the end of the one that closes, or an opening.
func (d *device) nextSession() (wait <-chan struct{}, o *opening, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.failure != nil:
		return nil, nil, d.failure
	case d.session != nil:
		if d.session.closing {
			return d.session.over, nil, nil
		}
		done := make(chan struct{})
		close(done)
		return done, nil, nil
	}
	if d.opening == nil {
		o := &opening{done: make(chan struct{})}
		d.opening = o
		d.wg.Go(func() { d.runOpening(o) })
	}
	return d.opening.done, d.opening, nil
}

func (d *device) runOpening(o *opening) {
	s, err := d.establish()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && d.failure == nil {
		d.session = s
		d.current.Store(s)
	}
	o.err = err
	d.opening = nil
	close(o.done)
	d.broadcastLocked()
}

// establish opens a session in every group. An id that any group refuses is closed everywhere and given up: ids ascend,
// and a group opens none at or below the highest it has seen.
func (d *device) establish() (*session, error) {
	for n := 0; ; n++ {
		info, err := d.catalogSession()
		if err != nil {
			return nil, err
		}
		err = d.openInGroups(info)
		if err == nil {
			d.metrics.all.sessions.Inc()
			return d.newSession(info), nil
		}
		if d.ctx.Err() != nil {
			return nil, d.ended()
		}
		d.gateway.config.Logger.Warn("session refused", "volume", d.key.name, "session", info.ID, "error", err)
		if _, closeErr := d.closeInGroups(d.ctx, info.ID); closeErr != nil {
			return nil, closeErr
		}
		d.forgetSession(info.ID)
		if k := storage.KindOf(err); k != storage.KindFenced && k != storage.KindConflict && k != storage.KindExists {
			return nil, err
		}
		d.pause(d.ctx, n, nil)
	}
}

func (d *device) newSession(info SessionInfo) *session {
	s := &session{id: info.ID, over: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(d.ctx)
	s.attempts = newAttemptClock(s.ctx, d.gateway.config.AttemptTimeout)
	for _, g := range d.groups {
		s.lanes = append(s.lanes, newLane(g, d.gateway.config.GroupRequests))
	}
	return s
}

// catalogSession returns a session that the catalog has opened and no group has heard of: the one that came with
// opening the volume, or a new one.
func (d *device) catalogSession() (SessionInfo, error) {
	d.mu.Lock()
	info := d.fresh
	d.fresh = SessionInfo{}
	d.mu.Unlock()
	if info.ID != 0 {
		return info, nil
	}
	info, err := d.gateway.openSession(d.ctx, d.key, d.attachment.ID)
	if err != nil {
		switch storage.KindOf(err) {
		case storage.KindNotFound, storage.KindFenced, storage.KindPermission, storage.KindConflict: // another machine uses it, or what will not be otherwise again
			d.fail(err)
		}
		return SessionInfo{}, err
	}
	if err := d.accept(info); err != nil {
		return SessionInfo{}, err
	}
	return info, d.closePredecessors(d.ctx, info)
}

// accept takes over what a newer session says of the volume; the volume fails when it is not the same any more.
func (d *device) accept(info SessionInfo) error {
	if info.Volume != d.id {
		err := d.errorf(storage.KindNotFound, "open session", "the volume was deleted and another one has its name now")
		d.fail(err)
		return err
	}
	if !slices.Equal(info.Groups, d.placement) {
		err := d.errorf(storage.KindUnsupported, "open session", "the volume's groups have changed; open it again")
		d.fail(err)
		return err
	}
	return d.adopt(VolumeState{Revision: info.Revision, SizeBytes: info.SizeBytes, Epoch: info.Epoch, Generation: info.Generation,
		Limits: info.Limits})
}

// adopt takes over the state of the volume; the volume fails when it is not ours any more.
func (d *device) adopt(st VolumeState) error {
	var err error
	switch {
	case st.Deleted:
		err = d.errorf(storage.KindNotFound, "use", "the volume was deleted")
	case st.Lost != "" || st.Generation > d.generation:
		err = d.fencedError(st)
	}
	if err != nil {
		d.fail(err)
		return err
	}
	d.throttle.set(st.Revision, st.Limits)
	raise(&d.sizeBytes, st.SizeBytes)
	raise(&d.epoch, uint64(st.Epoch))
	return nil
}

// openInGroups opens the session in every group, in parallel. It returns nil, or a group's refusal.
func (d *device) openInGroups(info SessionInfo) error {
	_, err := d.inGroups(d.ctx, op.Op{Kind: op.OpenSession, Volume: d.id, Session: info.ID}, func(r op.Result, attempts int) error {
		if r.Duplicate && attempts == 1 {
			return d.errorf(storage.KindConflict, "open session", "somebody else has opened it: its numbers are not ours to use")
		}
		return r.Err("open session", d.subject)
	})
	if storage.KindOf(err) == storage.KindNotFound {
		d.fail(err)
	}
	return err
}

// closeInGroups closes the session in every group, in parallel, and returns the windows.
func (d *device) closeInGroups(ctx context.Context, id storage.SessionID) ([]*op.Window, error) {
	results, err := d.inGroups(ctx, op.Op{Kind: op.CloseSession, Volume: d.id, Session: id}, func(r op.Result, _ int) error {
		switch r.Kind {
		case storage.KindFenced, storage.KindNotFound: // a newer generation, or a deleted volume: it is as good as closed
			return nil
		case storage.KindConflict: // closed so long ago that the window is forgotten
			return nil
		}
		return r.Err("close session", d.subject)
	})
	windows := make([]*op.Window, len(results))
	for i, r := range results {
		windows[i] = r.Window
	}
	return windows, err
}

// inGroups asks every group of the volume, each until it has a final answer, and returns the answers, in the order of
// d.groups, with the first error that check finds in them.
func (d *device) inGroups(ctx context.Context, o op.Op, check func(r op.Result, attempts int) error) ([]op.Result, error) {
	o.Generation, o.Epoch = d.generation, storage.Epoch(d.epoch.Load())
	header := o.AppendHeader(nil)
	results, errs := make([]op.Result, len(d.groups)), make([]error, len(d.groups))
	var wg sync.WaitGroup
	for i, group := range d.groups {
		wg.Go(func() {
			var attempts int
			if results[i], attempts, errs[i] = d.insist(ctx, group, header); errs[i] == nil {
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

// insist repeats an operation that may be repeated until a group has decided on it, or ctx or the device has ended.
func (d *device) insist(ctx context.Context, group storage.GroupID, header []byte) (res op.Result, attempts int, err error) {
	for n := 0; ; n++ {
		res, err = d.gateway.config.Cluster.Propose(d.attempts.context(), group, [][]byte{header})
		kind := kindOf(res, err)
		switch {
		case ctx.Err() != nil && (err != nil || retryable(kind)):
			return op.Result{}, n + 1, storage.E("ask group", storage.KindCanceled, d.subject, ctx.Err())
		case d.ctx.Err() != nil && (err != nil || retryable(kind)):
			return op.Result{}, n + 1, d.ended()
		case err != nil || retryable(kind):
			// Only a result is the group's decision; an error may be that of somebody on the way.
			d.metrics.retry(kind)
			d.pause(ctx, n, nil)
		default:
			return res, n + 1, nil
		}
	}
}

// rotate begins to close a session in every group; it does not wait. Requests in flight learn from the windows what
// was applied. then, if not nil, is told to the log.
func (d *device) rotate(s *session, reason string, cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != s || s.closing || d.failure != nil {
		return
	}
	s.closing = true
	d.current.Store(nil)
	s.cancel()
	d.metrics.rotations(reason)
	if reason != "close" {
		d.gateway.config.Logger.Warn("session is closed and its requests are decided by its windows",
			"volume", d.key.name, "session", s.id, "reason", reason, "error", cause)
	}
	d.wg.Go(func() { d.closeSession(s) })
}

// closeSession ends what rotate began. It gives up only when the device ends; whoever waits for over watches that too.
func (d *device) closeSession(s *session) {
	for n := 0; ; n++ {
		windows, err := d.closeInGroups(d.ctx, s.id)
		if err == nil {
			s.windows = windows
			break
		}
		if d.ctx.Err() != nil {
			return
		}
		d.gateway.config.Logger.Error("session cannot be closed", "volume", d.key.name, "session", s.id, "error", err)
		d.pause(d.ctx, n, nil)
	}
	d.mu.Lock()
	d.session = nil
	d.forgetting++
	close(s.over)
	d.broadcastLocked()
	d.mu.Unlock()

	d.forgetSession(s.id)
	d.mu.Lock()
	d.forgetting--
	d.broadcastLocked()
	d.mu.Unlock()
}

// forgetSession tells the catalog that a session is closed. One attempt: what the catalog did not hear of it, it finds
// out when the session's heartbeats stop.
func (d *device) forgetSession(id storage.SessionID) {
	if err := d.gateway.config.Cluster.CloseSession(d.gateway.attempts.context(), id); err != nil {
		d.gateway.config.Logger.Warn("catalog not told that a session is closed", "volume", d.key.name, "session", id, "error", err)
	}
}

// forgetLast tells the catalog of a session that the device still has when it ends. No group has heard of that session,
// or the groups need not close it, because they refuse the whole volume or its generation.
func (d *device) forgetLast() {
	d.mu.Lock()
	id := d.fresh.ID
	if k := storage.KindOf(d.failure); d.session != nil && (k == storage.KindFenced || k == storage.KindNotFound) {
		id = d.session.id
	}
	d.fresh = SessionInfo{}
	d.mu.Unlock()
	if id != 0 {
		d.forgetSession(id)
	}
}

// closePredecessors closes, in every group, the sessions that earlier instances of this gateway have left: what they had
// in flight must not land among what is served now.
func (d *device) closePredecessors(ctx context.Context, info SessionInfo) error {
	for _, id := range info.Predecessors {
		if _, err := d.closeInGroups(ctx, id); err != nil {
			return err
		}
		d.forgetSession(id)
	}
	return nil
}

// watch follows the volume's state until the device ends.
func (d *device) watch() {
	var revision uint64
	for n := 0; d.ctx.Err() == nil; {
		st, err := d.gateway.config.Cluster.WatchVolume(d.ctx, d.id, d.attachment.ID, revision)
		switch {
		case err == nil:
			n, revision = 0, st.Revision
			if d.adopt(st) != nil {
				return
			}
		case storage.KindOf(err) == storage.KindNotFound:
			d.fail(err)
			return
		default:
			d.pause(d.ctx, n, nil)
			n++
		}
	}
}

// pause sleeps before attempt n+1, shorter if ctx, other (which may be nil) or the device ends.
func (d *device) pause(ctx context.Context, n int, other <-chan struct{}) {
	c := &d.gateway.config
	select {
	case <-time.After(backoffFor(n, c.RetryMin, c.RetryMax, c.Jitter())):
	case <-ctx.Done():
	case <-other:
	case <-d.ctx.Done():
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
func (d *device) fencedError(st VolumeState) error {
	why := st.Lost
	if why == "" {
		why = "another holder has taken the volume over: its generation is " + st.Generation.String() + ", ours was " + d.generation.String()
	}
	return storage.E("use", storage.KindFenced, d.subject, errors.New(why))
}
