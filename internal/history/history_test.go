package history

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// do records operations one after the other: positive values are writes, negative ones reads of that value.
func do(h *History, cell int64, steps ...int64) {
	for _, s := range steps {
		if s > 0 {
			h.BeginWrite(0, cell, uint64(s)).Wrote()
		} else {
			h.BeginRead(1, cell).Saw(uint64(-s))
		}
	}
}

func TestHistories(t *testing.T) {
	for _, tc := range []struct {
		name   string
		record func(*History)
		ok     bool
	}{
		{"reads see the last write", func(h *History) { do(h, 1, 0, 5, -5, 6, -6, -6) }, true},
		{"a stale read", func(h *History) { do(h, 1, 5, 6, -5) }, false},
		{"a lost write", func(h *History) { do(h, 1, 5, 0) }, false},
		{"a value nobody wrote", func(h *History) { do(h, 1, 5, -7) }, false},
		{"an old copy lands after a later write", func(h *History) { do(h, 1, 5, 6, -6, -5) }, false},
		{"cells are independent", func(h *History) { do(h, 1, 5, -5); do(h, 2, 0, 6, -6) }, true},
		{"a discard reads as zero", func(h *History) { do(h, 1, 5); h.BeginWrite(0, 1, 0).Wrote(); do(h, 1, 0) }, true},
		{"a read while a write is under way sees either", func(h *History) {
			w := h.BeginWrite(0, 1, 5)
			do(h, 1, 0, -5)
			w.Wrote()
		}, true},
		{"but not back and forth", func(h *History) {
			w := h.BeginWrite(0, 1, 5)
			do(h, 1, -5, 0)
			w.Wrote()
		}, false},
		{"an unknown write may take effect late", func(h *History) {
			h.BeginWrite(0, 1, 5)
			do(h, 1, 0, 6, -6, -5, -5)
		}, true},
		{"but only once", func(h *History) {
			h.BeginWrite(0, 1, 5)
			do(h, 1, -5, 6, -6, -5)
		}, false},
		{"an unknown discard too", func(h *History) {
			do(h, 1, 6)
			h.BeginWrite(0, 1, 0)
			do(h, 1, -6, 0, 7, -7)
		}, true},
		{"an unknown write may never take effect", func(h *History) { h.BeginWrite(0, 1, 5); do(h, 1, 0, 6, -6) }, true},
		{"a failed write must not take effect", func(h *History) { h.BeginWrite(0, 1, 5).Failed(); do(h, 1, -5) }, false},
		{"a read without an answer says nothing", func(h *History) { h.BeginRead(0, 1); do(h, 1, 5, -5) }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := New()
			tc.record(h)
			r := h.Check(time.Minute)
			if err := r.Err(); (err == nil) != tc.ok {
				t.Errorf("linearizable: %v, want %v; %v", err == nil, tc.ok, err)
			}
			if !tc.ok && !strings.Contains(r.Text, "read ->") {
				t.Errorf("the report does not show the history: %q", r.Text)
			}
		})
	}
}

// TestPlantedStaleRead runs concurrent clients on registers that are correct, and then on such where one read in
// two hundred returns the value before the last: the first must pass, the second must be found.
func TestPlantedStaleRead(t *testing.T) {
	for _, stale := range []bool{false, true} {
		h := runClients(t, stale)
		if err := h.Check(time.Minute).Err(); (err != nil) != stale {
			t.Errorf("with stale reads %v: %v", stale, err)
		}
	}
}

func runClients(t *testing.T, stale bool) *History {
	t.Helper()
	const seed, clients, cells, each = 7, 8, 4, 500
	h := New()
	var mu sync.Mutex
	var now, before [cells]uint64
	var wg sync.WaitGroup
	for client := range clients {
		rng := rand.New(rand.NewPCG(seed, uint64(client)))
		wg.Go(func() {
			for range each {
				cell := rng.IntN(cells)
				if rng.IntN(2) == 0 {
					v := h.NextValue()
					p := h.BeginWrite(client, int64(cell), v)
					mu.Lock()
					before[cell], now[cell] = now[cell], v
					mu.Unlock()
					p.Wrote()
					continue
				}
				p := h.BeginRead(client, int64(cell))
				mu.Lock()
				v := now[cell]
				if stale && rng.IntN(200) == 0 {
					v = before[cell]
				}
				mu.Unlock()
				p.Saw(v)
			}
		})
	}
	wg.Wait()
	return h
}

func TestFillAndValue(t *testing.T) {
	p := make([]byte, 2048)
	Fill(p, 1<<40+7)
	if v, ok := Value(p); v != 1<<40+7 || !ok {
		t.Errorf("read back %d, %v", v, ok)
	}
	p[1024] ^= 1
	if _, ok := Value(p); ok {
		t.Error("a torn cell was not noticed")
	}
}

// TestCut: what was cut off happened before the cut, or never.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		name  string
		after func(h *History, cut Pending) // what the others and the client that was cut off see
		legal bool
	}{
		{"never", func(*History, Pending) {}, true},
		{"before", func(h *History, _ Pending) { h.BeginRead(2, 1).Saw(7) }, true},
		{"acknowledged late", func(_ *History, cut Pending) { cut.Wrote() }, true},
		{"after a later write", func(h *History, _ Pending) {
			h.BeginWrite(2, 1, 8).Wrote()
			h.BeginRead(2, 1).Saw(7)
		}, false},
		{"acknowledged and landed late", func(h *History, cut Pending) {
			h.BeginWrite(2, 1, 8).Wrote()
			cut.Wrote()
			h.BeginRead(2, 1).Saw(7)
		}, false},
		{"acknowledged and gone", func(h *History, cut Pending) {
			cut.Wrote()
			h.BeginRead(2, 1).Saw(0)
		}, false},
	} {
		h := New()
		pending := h.BeginWrite(1, 1, 7)
		h.Cut(func(_ int, cell int64) bool { return cell == 2 }) // does not concern it
		h.Cut(func(_ int, cell int64) bool { return cell == 1 })
		c.after(h, pending)
		if err := h.Check(time.Second).Err(); (err == nil) != c.legal {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	h := New()
	read := h.BeginRead(1, 1)
	h.Cut(func(int, int64) bool { return true })
	h.BeginWrite(2, 1, 8).Wrote()
	read.Saw(8)
	if h.Check(time.Second).Err() == nil {
		t.Error("a read that was cut off saw what was written after the cut")
	}
}
