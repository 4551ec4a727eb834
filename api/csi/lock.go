package csi

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// locks let one call at a time work on a volume. The zero value is ready.
type locks struct {
	mu   sync.Mutex
	held map[string]string // by volume: the call that works on it
}

// lock makes the call the only one that works on the volume until unlock; while there is another it returns ABORTED,
// which is what the specification asks for: the caller comes again.
func (l *locks) lock(volume, call string) (unlock func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, busy := l.held[volume]; busy {
		return nil, status.Error(codes.Aborted, fmt.Sprintf("volume %s: %s is being carried out; ask again when it is done", volume, other))
	}
	if l.held == nil {
		l.held = map[string]string{}
	}
	l.held[volume] = call
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, volume)
	}, nil
}
