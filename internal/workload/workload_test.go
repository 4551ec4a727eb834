package workload

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged/internal/clock"
)

// memory is a volume in memory, reached through gateways that can be made to misbehave.
type memory struct {
	mu     sync.Mutex // guards what follows
	data   []byte
	writes int
	// staleAfter gateways answer reads from a copy made at that many writes; 0 never.
	staleAfter int
	stale      []byte
	// lateEvery write in so many is applied 700 ms after it was answered with an error; 0 never.
	lateEvery int
	// repeat applies late writes at once and once more when they are late.
	repeat bool
	// tornEvery write in so many loses its second half; 0 never.
	tornEvery int
}

var errLost = errors.New("connection lost")

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	wait(ctx, time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.data
	if m.stale != nil && m.writes%50 == 0 {
		from = m.stale
	}
	copy(p, from[off:])
	return nil
}

func (m *memory) WriteAt(ctx context.Context, p []byte, off int64) error {
	wait(ctx, time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.staleAfter > 0 && m.writes == m.staleAfter {
		m.stale = slices.Clone(m.data)
	}
	switch {
	case m.tornEvery > 0 && m.writes%m.tornEvery == 0:
		p = p[:len(p)-512]
	case m.lateEvery > 0 && m.writes%m.lateEvery == 0:
		p = slices.Clone(p)
		time.AfterFunc(700*time.Millisecond, func() { m.apply(p, off) })
		if !m.repeat {
			return errLost
		}
	}
	copy(m.data[off:], p)
	return nil
}

func (m *memory) apply(p []byte, off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
}

func (m *memory) WriteZeroes(ctx context.Context, off, n int64, _ bool) error {
	return m.WriteAt(ctx, make([]byte, n), off)
}

func (m *memory) Trim(ctx context.Context, off, n int64) error {
	return m.WriteAt(ctx, make([]byte, n), off)
}

func (m *memory) Close() error { return nil }

// TestWorkload runs the clients on a volume in memory, in virtual time: what is correct passes, what is not is
// found.
func TestWorkload(t *testing.T) {
	for _, tc := range []struct {
		name string
		mem  *memory
		want string // in the error; empty: none
	}{
		{"correct", &memory{}, ""},
		{"errors whose writes land late are correct", &memory{lateEvery: 20}, ""},
		{"stale reads", &memory{staleAfter: 500}, "not linearizable"},
		{"a duplicate lands after later writes", &memory{lateEvery: 20, repeat: true}, "not linearizable"},
		{"torn writes", &memory{tornEvery: 100}, "torn"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 256 << 20
				tc.mem.data = make([]byte, size)
				failed := make(chan error, 1<<20)
				w := New(Config{Seed: 1, Clients: 6, Gateways: 3, SizeBytes: size, PerSecond: 100, WindowEvery: 2 * time.Second,
					Patience: time.Second, Failed: func(_, _ int, err error) { failed <- err },
					Dial: func(_ context.Context, gateway int) (Device, error) {
						if gateway == 2 { // is down, and its connection a typed nil
							return (*memory)(nil), errLost
						}
						return tc.mem, nil
					}})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				w.Run(ctx)
				wait(t.Context(), time.Second) // what lands late
				if err := w.ReadAll(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				total, answered := int64(0), w.Answered()
				for _, n := range answered {
					total += n
				}
				if fewest := slices.Min(answered); total < 3000 || fewest < 100 {
					t.Errorf("%d requests answered, %d of the client with fewest", total, fewest)
				}
				if n := len(failed); n < 2 || (tc.mem.lateEvery > 0 && !tc.mem.repeat) != (n > 20) {
					t.Errorf("%d errors were told", n)
				}
				r, err := w.Check()
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("want %q, got %v", tc.want, err)
				}
				if r.Operations < 4000 || r.Cells < 40 {
					t.Errorf("little was done: %d operations on %d cells", r.Operations, r.Cells)
				}
			})
		})
	}
}

func wait(ctx context.Context, d time.Duration) { _ = clock.Sleep(ctx, d) } // however it ends
