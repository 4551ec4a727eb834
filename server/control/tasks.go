package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
)

const (
	firstRetry = 250 * time.Millisecond
	maxRetry   = 30 * time.Second
)

// tasks runs what the reconcilers decided: one task per key at a time, a limited number in all. A key whose task
// failed rests for a while, twice as long each time.
type tasks struct {
	ctx    context.Context
	limit  int
	logger *slog.Logger
	done   func(t task, err error) // called from the task's goroutine

	wg      sync.WaitGroup
	mu      sync.Mutex      // guards the maps
	running map[string]task // by key
	resting map[string]rest // bounded: one per key that failed; keys are objects of the catalog
}

type rest struct {
	until time.Time
	next  time.Duration
}

// task is one decision on its way.
type task struct {
	key  string // the object it changes
	kind string // bounded: a metric's label
	text string // for the log
	// from and to are the nodes between which a replica is pulled; 0: none is.
	from, to storage.NodeID
	run      func(ctx context.Context) error
}

func newTasks(ctx context.Context, limit int, logger *slog.Logger, done func(task, error)) *tasks {
	return &tasks{ctx: ctx, limit: limit, logger: logger, done: done, running: map[string]task{}, resting: map[string]rest{}}
}

// idle reports whether a task may be started for the key now.
func (t *tasks) idle(key string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.idleLocked(key, now)
}

// slowKind is the kind of tasks that may take hours (placement.StepCreate); half of the places are kept free of them.
const slowKind = "create"

// maxPulls is how many replicas are pulled at once from one node, and how many to one: more of them would not end sooner, and
// clients of the nodes feel each.
const maxPulls = 2

func (t *tasks) roomLocked(x task) bool {
	if x.kind != slowKind {
		return true
	}
	slow, from, to := 0, 0, 0
	for _, r := range t.running {
		if r.kind != slowKind {
			continue
		}
		slow++
		if r.from == x.from {
			from++
		}
		if r.to == x.to {
			to++
		}
	}
	return slow < max(1, t.limit/2) && from < maxPulls && to < maxPulls
}

func (t *tasks) idleLocked(key string, now time.Time) bool {
	_, busy := t.running[key]
	return len(t.running) < t.limit && !busy && !now.Before(t.resting[key].until)
}

// start runs the task unless its key is busy or resting, or too many run.
func (t *tasks) start(x task, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.idleLocked(x.key, now) || !t.roomLocked(x) || t.ctx.Err() != nil {
		return false
	}
	t.running[x.key] = x
	t.wg.Go(func() {
		err := x.run(t.ctx)
		t.finish(x, err, time.Now())
	})
	return true
}

func (t *tasks) finish(x task, err error, now time.Time) {
	t.mu.Lock()
	delete(t.running, x.key)
	switch {
	case err == nil:
		delete(t.resting, x.key)
	case t.ctx.Err() == nil:
		pause := max(t.resting[x.key].next, firstRetry)
		t.resting[x.key] = rest{until: now.Add(jitter(pause)), next: min(2*pause, maxRetry)}
		t.logger.Info("a step of the catalog's leader failed and is tried again", "object", x.key, "step", x.text,
			"pause", pause, "error", err)
	}
	t.mu.Unlock()
	t.done(x, err)
}
