package nbd

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newTestBudget(t *testing.T, bytes int64, connections int) *Budget {
	t.Helper()
	b, err := NewBudget(bytes, connections)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// enterAs enters a connection from an address to an export.
func enterAs(t *testing.T, b *Budget, export string, address byte) *share {
	t.Helper()
	s := b.enter()
	if s == nil {
		t.Fatal("the budget takes no more connections")
	}
	s.join(nil, export, &net.TCPAddr{IP: net.IPv4(10, 0, 0, address)})
	return s
}

// fill takes pieces until there is no room, and returns how much that was.
func fill(s *share, piece int64) (took int64) {
	for s.TryAcquire(piece) {
		took += piece
	}
	return took
}

// TestBudgetParts: however many take as much as they can, each who comes later finds room, and everybody finds his own. All
// connections of an export together get a third of what they leave, those of an address as much as they leave.
func TestBudgetParts(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		next func(i int) (export string, address byte)
		want int64
		most int64 // all together get one part in so many
	}{
		"connections of one export": {func(i int) (string, byte) { return "a", byte(i) }, 32 * mib, 4},
		"exports of one address":    {func(i int) (string, byte) { return string(rune('a' + i)), 1 }, 32 * mib, 2},
		"exports and addresses":     {func(i int) (string, byte) { return string(rune('a' + i)), byte(i) }, 4 * mib, 1},
	} {
		t.Run(name, func(t *testing.T) {
			next, want := c.next, c.want
			b := newTestBudget(t, 512*mib, 4096)
			var shares []*share
			for i := range 24 {
				export, address := next(i)
				s := enterAs(t, b, export, address)
				shares = append(shares, s)
				if took := fill(s, 4<<10); took < b.floorBytes {
					t.Errorf("connection %d gets %d bytes, has %d for itself", i, took, b.floorBytes)
				}
			}
			if most := b.poolBytes / c.most; b.used > most {
				t.Errorf("together they get %d bytes, more than %d", b.used, most)
			}
			other := enterAs(t, b, "other", 200)
			if !other.TryAcquire(want) {
				t.Errorf("%d bytes of %d are left for another export and address, of which it does not get %d", b.poolBytes-b.used, b.poolBytes, want)
			} else {
				other.Release(want)
			}
			for _, s := range shares {
				s.Release(s.held)
				s.leave()
			}
			other.leave()
			if b.used != 0 || b.entered != 0 || len(b.groups) != 0 {
				t.Errorf("left over: %d bytes, %d connections, %d accounts", b.used, b.entered, len(b.groups))
			}
		})
	}
}

// TestBudgetHoldsItsBound: whatever comes and goes, no more is out than there is, and whoever waits is served when the
// others have given back. The clock stands still unless everybody waits.
func TestBudgetHoldsItsBound(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			b := newTestBudget(t, 1<<20, 16)
			var wg sync.WaitGroup
			for i := range 16 {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				s := enterAs(t, b, string(rune('a'+r.IntN(4))), byte(r.IntN(3)))
				wg.Go(func() {
					defer s.leave()
					for range 200 {
						n := int64(4<<10) << r.IntN(8)
						ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
						if r.IntN(8) == 0 {
							cancel()
						}
						if err := s.Acquire(ctx, n); err == nil {
							b.check(t, seed)
							<-time.After(time.Duration(r.IntN(5)) * time.Millisecond)
							s.Release(n)
						} else if ctx.Err() == context.DeadlineExceeded {
							t.Errorf("seed %d: %d bytes never came", seed, n)
						}
						cancel()
					}
				})
			}
			wg.Wait()
			if b.used != 0 || b.entered != 0 || len(b.groups) != 0 || len(b.waiters) != 0 {
				t.Errorf("seed %d: left over: %d bytes, %d connections, %d accounts, %d waiters", seed, b.used, b.entered, len(b.groups), len(b.waiters))
			}
		})
	}
}

func (b *Budget) check(t *testing.T, seed uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var exports, addresses int64
	for key, a := range b.groups {
		if _, ok := key.(addressKey); ok {
			addresses += a.used
		} else {
			exports += a.used
		}
	}
	if b.used > b.poolBytes || exports != b.used || addresses != b.used {
		t.Errorf("seed %d: %d of %d bytes are out; %d by export, %d by address", seed, b.used, b.poolBytes, exports, addresses)
	}
}

// TestBudgetServesTheLargest: a request of half of the pool is not kept waiting for ever by small ones of others.
func TestBudgetServesTheLargest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBudget(t, 1<<20, 4)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 3 {
			s := enterAs(t, b, string(rune('a'+i)), byte(i))
			for range 64 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if s.Acquire(context.Background(), 16<<10) == nil {
							<-time.After(time.Millisecond)
							s.Release(16 << 10)
						}
					}
				})
			}
		}
		synctest.Wait()
		s := enterAs(t, b, "large", 9)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Acquire(ctx, 512<<10); err != nil {
			t.Error("512 KiB of 1 MiB never came")
		} else {
			s.Release(512 << 10)
		}
		close(stop)
		wg.Wait()
	})
}

// TestBudgetFloor: when others hold the whole pool, each connection still has a few blocks for itself, and no more.
func TestBudgetFloor(t *testing.T) {
	b := newTestBudget(t, 512<<20, 4096)
	hold := b.poolBytes
	b.used = hold
	for i := range 3 {
		s := enterAs(t, b, "a", byte(i))
		const own = 32 << 10
		if took := fill(s, 4<<10); took != own {
			t.Errorf("connection %d gets %d bytes, want the %d of its own", i, took, own)
		}
		s.Release(s.held)
		s.leave()
	}
	if b.used != hold {
		t.Errorf("%d of %d bytes of the pool are out", b.used, hold)
	}
}
