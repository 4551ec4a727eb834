package dockerplugin

import (
	"context"
	"sync"

	storage "github.com/storaged/storaged"
)

// locks let one call at a time work on a volume, and the others wait. The zero value is ready.
type locks struct {
	mu   sync.Mutex
	held map[string]*waiters // by volume; guarded by mu
}

// waiters are a volume's lock.
type waiters struct {
	turn  chan struct{} // holds one element while nobody works on the volume
	calls int           // that work or wait; guarded by locks.mu
}

// lock waits for the calls before this one. The error is ctx's.
func (l *locks) lock(ctx context.Context, volume string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*waiters{}
	}
	w := l.held[volume]
	if w == nil {
		w = &waiters{turn: make(chan struct{}, 1)}
		w.turn <- struct{}{}
		l.held[volume] = w
	}
	w.calls++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if w.calls--; w.calls == 0 {
			delete(l.held, volume)
		}
	}
	select {
	case <-w.turn:
		return func() { w.turn <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, storage.E("wait for", storage.KindUnavailable, "volume "+volume, ctx.Err())
	}
}
