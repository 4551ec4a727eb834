package chaos

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged/internal/history"
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
	pause(ctx, time.Millisecond)
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
	pause(ctx, time.Millisecond)
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
				w := &workload{seed: 1, clients: 6, gateways: 3, sizeBytes: size, perSecond: 100, windowEvery: 2 * time.Second,
					patience: time.Second, history: history.New(), answered: make([]atomic.Int64, 6),
					dial: func(_ context.Context, gateway int) (device, error) {
						if gateway == 2 { // is down, and its connection a typed nil
							return (*memory)(nil), errLost
						}
						return tc.mem, nil
					}}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				w.run(ctx)
				pause(t.Context(), time.Second) // what lands late
				if err := w.readAll(t.Context(), 0, 5); err != nil {
					t.Fatal(err)
				}
				if total, _, fewest := w.totalAnswered(); total < 3000 || fewest < 100 {
					t.Errorf("%d requests answered, %d of the client with fewest", total, fewest)
				}
				r, err := w.check()
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

// journal is a target that writes down what is done to it.
type journal struct {
	broken int // faults that are not mended
	lines  []string
}

func (j *journal) note(what string, broken int) error {
	j.lines = append(j.lines, what)
	j.broken += broken
	return nil
}
func (j *journal) nodes() int                         { return 3 }
func (j *journal) kill(int) error                     { return j.note("kill", 1) }
func (j *journal) restart(context.Context, int) error { return j.note("restart", -1) }
func (j *journal) pause(int) error                    { return j.note("pause", 1) }
func (j *journal) resume(int) error                   { return j.note("resume", -1) }
func (j *journal) partitions() bool                   { return true }
func (j *journal) cut(a, b int) error                 { return j.link(a, b) }
func (j *journal) oneWay(from, to int) error          { return j.link(from, to) }
func (j *journal) isolate(int) error                  { return j.note("isolate", 1) }
func (j *journal) heal() error                        { return j.note("heal", -1) }
func (j *journal) leader(context.Context) int         { return 1 }
func (j *journal) link(a, b int) error {
	if a == b {
		return errors.New("a node was cut from itself")
	}
	return j.note("link", 1)
}

// TestTorment: faults come one at a time, are mended, every kind comes, and a seed gives the same faults again.
func TestTorment(t *testing.T) {
	runs := [2]journal{}
	for i := range runs {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			if err := torment(ctx, &runs[i], 3, func(time.Time, time.Time) {}, t.Logf); err != nil {
				t.Error(err)
			}
		})
		if runs[i].broken != 0 {
			t.Errorf("%d faults were not mended", runs[i].broken)
		}
	}
	for _, what := range []string{"kill", "restart", "pause", "resume", "link", "isolate", "heal"} {
		if !slices.Contains(runs[0].lines, what) {
			t.Errorf("in five minutes there was no %s", what)
		}
	}
	if !slices.Equal(runs[0].lines, runs[1].lines) {
		t.Error("the same seed gave other faults")
	}
}
