package hostfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
)

// ErrPending says that a call has ended before what it asked for: that goes on, and the same call again learns how it ended.
// What goes on must not be undone beside it.
var ErrPending = errors.New("it goes on; ask again, and look at `storagectl status` while it stays so")

// slots let work on a device or a path outlive its caller, and keep other work from starting there meanwhile. mkfs, fsck and
// mount(2) wait for the device, which may wait for the cluster; none of them can be cancelled, or safely started twice.
//
// The same call made twice does the work once: the second waits for the work that is running. Any other call on one of its keys
// waits until that has ended. A caller waits no longer than its context. If work fails when no caller waits, its error is kept
// for the next same call. Otherwise a tool that takes longer than every caller waits would run again and again without a report.
// Success needs no record: it shows on the device or the path.
type slots struct {
	base   context.Context // of the work; ends with close
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	jobs    int
	busy    map[string]*job // by key
	unheard map[task]outcome
}

// task is what a caller asks for: op and subject as errors say them, and in terms everything else that it depends on. Two equal
// ones are one.
type task struct {
	op, subject, terms string
	// look: it changes nothing and is asked again each time; an error that no caller was left to hear is not kept.
	look bool
}

// job is work that is under way.
type job struct {
	task task
	keys []string
	done chan struct{} // closed when value and err are set

	callers int // that wait; guarded by slots.mu
	value   any
	err     error
}

// outcome is an error that nobody has heard.
type outcome struct {
	keys []string
	err  error
	at   time.Time
}

const (
	// maxJobs bounds the work that is under way at once: a few for each device of a host.
	maxJobs = 1024
	// maxUnheard bounds the errors that are kept, keepUnheard for how long.
	maxUnheard  = 256
	keepUnheard = 10 * time.Minute
)

func newSlots() *slots {
	s := &slots{busy: map[string]*job{}, unheard: map[task]outcome{}}
	s.base, s.cancel = context.WithCancel(context.Background())
	return s
}

// inSlot carries do out while nothing else is under way on the keys, and returns its answer. do
// gets a context that outlives the caller's and carries its values. When the caller's context ends first, the error is ErrPending
// (and the context's) if do, or what it waits for, is under way.
func inSlot[T any](ctx context.Context, s *slots, what task, keys []string, do func(context.Context) (T, error)) (T, error) {
	var none T
	for {
		if err := ctx.Err(); err != nil {
			return none, ended(what, err, nil)
		}
		j, mine, err := s.join(what, keys)
		switch {
		case err != nil:
			return none, err
		case mine:
			go func() { // ends with do, which close of the slots asks to end
				work, cancel := context.WithCancel(context.WithoutCancel(ctx))
				defer cancel()
				defer context.AfterFunc(s.base, cancel)()
				value, err := do(work)
				s.finish(j, value, err)
			}()
		}
		select {
		case <-j.done:
		case <-ctx.Done():
			if !s.leave(j, j.task == what) {
				return none, ended(what, ctx.Err(), j)
			}
		}
		if j.task == what {
			value, _ := j.value.(T) // the same call has the same type; none after an error
			return value, j.err
		}
	}
}

// join returns the work that stands on one of the keys, or begins that of the caller (mine). The error is one that nobody has
// heard yet.
func (s *slots) join(what task, keys []string) (j *job, mine bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		if j = s.busy[key]; j != nil {
			if j.task == what {
				j.callers++
			}
			return j, false, nil
		}
	}
	if o, ok := s.unheard[what]; ok && time.Since(o.at) < keepUnheard {
		delete(s.unheard, what)
		return nil, false, o.err
	}
	if s.base.Err() != nil || s.jobs >= maxJobs {
		return nil, false, storage.E(what.op, storage.KindUnavailable, what.subject, errors.New("the process stops, or too much is under way; ask again"))
	}
	for other, o := range s.unheard { // they are of what was there before
		if slices.ContainsFunc(o.keys, func(key string) bool { return slices.Contains(keys, key) }) {
			delete(s.unheard, other)
		}
	}
	j = &job{task: what, keys: keys, callers: 1, done: make(chan struct{})}
	for _, key := range keys {
		s.busy[key] = j
	}
	s.jobs++
	return j, true, nil
}

// leave takes a caller away whose context has ended, and reports whether the work had ended nevertheless.
func (s *slots) leave(j *job, joined bool) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-j.done:
		return true
	default:
	}
	if joined {
		j.callers--
	}
	return false
}

// finish gives the keys free.
func (s *slots) finish(j *job, value any, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range j.keys {
		delete(s.busy, key)
	}
	s.jobs--
	j.value, j.err = value, err
	if err != nil && j.callers == 0 && !j.task.look {
		for other, o := range s.unheard {
			if len(s.unheard) < maxUnheard && time.Since(o.at) < keepUnheard {
				continue
			}
			delete(s.unheard, other)
		}
		s.unheard[j.task] = outcome{keys: j.keys, err: err, at: time.Now()}
	}
	close(j.done)
}

// close asks what is under way to end, and lets nothing begin. It does not wait: nothing calls a system call off.
func (s *slots) close() { s.cancel() }

// ended is the error of a caller whose context has ended, while j was under way.
func ended(what task, cause error, j *job) error {
	switch {
	case j == nil:
	case j.task != what:
		cause = fmt.Errorf("%w, and before it began: %s %s is under way, and %w", cause, j.task.op, j.task.subject, ErrPending)
	default:
		cause = fmt.Errorf("%w, and %w", cause, ErrPending)
	}
	return storage.E(what.op, storage.KindCanceled, what.subject, cause)
}
