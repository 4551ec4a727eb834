package nbd

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/doors"
)

// Budget bounds the payloads that connections have in flight together: those of one Server, or of several that are given
// the same one (Config.Budget), so that a process with many servers has one bound. It may be used concurrently.
//
// What a connection holds it may hold for long: a client that does not read its replies, or a volume at its limits, keeps
// it for as long as it likes. So nobody gets what others would then have to wait for:
//
//   - Each connection has a few blocks of its own (floorBytes). Small requests wait for nobody.
//   - Of the common rest, a connection holds at most a part (connParts) of what it leaves for others. All connections to an
//     export together may hold a larger part, and all of one address too. What is left shrinks with each that takes, and so
//     does what the next may take, but never to nothing. Who holds nothing yet may take as much as it leaves.
//   - While somebody who holds nothing waits, those who hold something leave room for him.
type Budget struct {
	connections int   // entered <= connections
	floorBytes  int64 // what each connection has for itself
	poolBytes   int64 // the rest: poolBytes + connections*floorBytes is what the Budget was made for

	mu      sync.Mutex
	entered int              // guarded by mu, like all below
	used    int64            // of the pool; used <= poolBytes
	groups  map[any]*account // of exports and addresses with connections
	waiters []*roomWaiter    // in the order of their coming
}

const (
	// maxFloorBytes is what a connection has for itself when the budget is large enough: eight blocks.
	maxFloorBytes = 32 << 10
	// floorPart: at most one part in so many of a budget is given away in advance.
	floorPart = 4

	// What an account holds is at most one part in so many of what is left for others.
	connParts    = 6
	exportParts  = 3
	addressParts = 1
	// idlePart: who holds nothing may take more than it leaves if it leaves one part in so many of the pool. So the
	// largest request is served by a budget that is not much larger.
	idlePart = 4
)

// account is what the connections of one kind hold of the pool. Guarded by Budget.mu.
type account struct {
	parts int64
	used  int64
	users int // connections; for those in Budget.groups
}

// share is a connection's part in a Budget. It is a room of conn.
type share struct {
	budget *Budget
	keys   []any // of its accounts in budget.groups

	// Guarded by budget.mu. accounts[0] is the connection's own; it holds max(0, held-floorBytes), and so much of what
	// the others hold is the connection's.
	accounts []*account
	held     int64
}

// roomWaiter is a request that waits for room.
type roomWaiter struct {
	share *share
	n     int64
	ready chan struct{} // closed under Budget.mu, when the room is taken and the waiter out of the list
}

// NewBudget makes a budget of so many bytes for so many connections; more are refused. It must hold the largest payload of the
// servers that use it beside what each connection has for itself: their configurations are invalid otherwise.
func NewBudget(bytes int64, connections int) (*Budget, error) {
	if bytes < minPayloadBytes || connections < 1 {
		return nil, storage.E("configure", storage.KindInvalid, "NBD budget", fmt.Errorf("%d bytes for %d connections; at least %d and 1",
			bytes, connections, minPayloadBytes))
	}
	floor := min(maxFloorBytes, bytes/floorPart/int64(connections)) &^ (1<<minBufferShift - 1)
	return &Budget{connections: connections, floorBytes: floor, poolBytes: bytes - floor*int64(connections),
		groups: map[any]*account{}}, nil
}

// enter counts a connection in. It returns nil when there are as many as the budget is for.
func (b *Budget) enter() *share {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entered == b.connections {
		return nil
	}
	b.entered++
	return &share{budget: b, accounts: []*account{{parts: connParts}}}
}

type (
	exportKey struct {
		server *Server // volumes of two servers may have the same name and nothing in common
		name   string
	}
	addressKey string
)

// join says whose connection it is. It holds nothing yet.
func (s *share) join(server *Server, export string, remote net.Addr) {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	s.joinLocked(exportKey{server, export}, exportParts)
	if address := doors.AddressOf(remote); address != "" { // behind a Unix socket is this host, which shares out by itself
		s.joinLocked(addressKey(address), addressParts)
	}
}

func (s *share) joinLocked(key any, parts int64) {
	a := s.budget.groups[key]
	if a == nil {
		a = &account{parts: parts}
		s.budget.groups[key] = a
	}
	a.users++
	s.keys, s.accounts = append(s.keys, key), append(s.accounts, a)
}

// leave counts the connection out. It holds nothing any more.
func (s *share) leave() {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entered--
	for _, key := range s.keys {
		if a := b.groups[key]; a.users > 1 {
			a.users--
		} else {
			delete(b.groups, key)
		}
	}
}

// TryAcquire takes n bytes, if that is possible now.
func (s *share) TryAcquire(n int64) bool {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	return s.takeLocked(n)
}

// Acquire takes n bytes, waiting for them until ctx ends; then it takes nothing.
func (s *share) Acquire(ctx context.Context, n int64) error {
	b := s.budget
	b.mu.Lock()
	if s.takeLocked(n) {
		b.mu.Unlock()
		return nil
	}
	w := &roomWaiter{share: s, n: n, ready: make(chan struct{})}
	b.waiters = append(b.waiters, w)
	b.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
	}
	if ctx.Err() == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiters, w); i >= 0 {
		b.waiters = slices.Delete(b.waiters, i, i+1)
	} else {
		s.addLocked(-n) // granted meanwhile, often by those who gave up for the same reason
	}
	b.grantLocked() // room may have been left for it
	return ctx.Err()
}

// Release gives n bytes back.
func (s *share) Release(n int64) {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	s.addLocked(-n)
	s.budget.grantLocked()
}

// addLocked changes what the connection holds. What it has for itself is taken first and given back last.
func (s *share) addLocked(n int64) {
	before := max(0, s.held-s.budget.floorBytes)
	s.held += n
	change := max(0, s.held-s.budget.floorBytes) - before
	s.budget.used += change
	for _, a := range s.accounts {
		a.used += change
	}
}

func (s *share) takeLocked(n int64) bool {
	if !s.fitsLocked(n, s.budget.firstIdleLocked()) {
		return false
	}
	s.addLocked(n)
	return true
}

// grantLocked gives waiters room, in the order of their coming, as far as there is some for them.
func (b *Budget) grantLocked() {
	first := b.firstIdleLocked()
	for i := 0; i < len(b.waiters); {
		w := b.waiters[i]
		if !w.share.fitsLocked(w.n, first) {
			i++
			continue
		}
		w.share.addLocked(w.n)
		b.waiters = slices.Delete(b.waiters, i, i+1)
		close(w.ready)
		if w == first {
			first = b.firstIdleLocked()
		}
	}
}

// firstIdleLocked returns who has waited longest of those who hold nothing of the pool; nil if nobody does.
func (b *Budget) firstIdleLocked() *roomWaiter {
	for _, w := range b.waiters {
		if w.share.accounts[0].used == 0 {
			return w
		}
	}
	return nil
}

// fitsLocked reports whether the connection may take n bytes more. first is who has waited longest without holding
// anything, or nil.
func (s *share) fitsLocked(n int64, first *roomWaiter) bool {
	b := s.budget
	n = max(0, s.held+n-b.floorBytes) - s.accounts[0].used // of the pool
	if n == 0 {
		return true
	}
	if b.used == 0 {
		return n <= b.poolBytes
	}
	left := b.poolBytes - b.used - n
	busy := s.accounts[0].used > 0
	if busy && first != nil {
		left -= first.n
	}
	if left < 0 {
		return false
	}
	for _, a := range s.accounts {
		holds, most := a.used+n, left/a.parts
		if busy && first != nil && slices.Contains(first.share.accounts, a) {
			holds += first.n
		}
		if a.used == 0 && (n <= left || left >= b.poolBytes/idlePart) {
			continue
		}
		if holds > most {
			return false
		}
	}
	return true
}
