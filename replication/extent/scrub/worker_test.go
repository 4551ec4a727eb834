package scrub

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

const mib = 1 << 20

// fakeDisk has segments of 64 MiB.
type fakeDisk struct {
	mu      sync.Mutex
	waited  int64 // bytes
	seen    int64 // waited, when the latency was asked for
	n       segment.SegmentNo
	bad     map[segment.SegmentNo][]Bad
	outcome func(compact.Block) (Outcome, error)
	latency time.Duration
	read    []segment.SegmentNo
	at      []time.Time
	mends   int
	tables  int
	from    [][]byte // the pieces of tables that were asked for
	state   []byte
	listed  int
	failing error // of Tables at all pieces but the first
	broken  map[segment.SegmentNo]error
}

// with calls fn while the disk stands still.
func (d *fakeDisk) with(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

func (d *fakeDisk) Sealed() (infos []segment.SegmentInfo, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listed++
	for no := segment.SegmentNo(1); no <= d.n; no++ {
		infos = append(infos, segment.SegmentInfo{No: no, UsedBytes: 64 * mib, State: segment.SegmentSealed})
	}
	return infos, nil
}

func (d *fakeDisk) Check(no segment.SegmentNo, wait func(int64) error) (Found, error) {
	for range 256 {
		if err := wait(mib / 4); err != nil {
			return Found{}, err
		}
		d.with(func() { d.waited += mib / 4 })
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read, d.at = append(d.read, no), append(d.at, time.Now())
	if err := d.broken[no]; err != nil {
		return Found{Bytes: mib}, err
	}
	return Found{Bytes: 64 * mib, Blocks: 200, Bad: d.bad[no]}, nil
}

func (d *fakeDisk) Gone(no segment.SegmentNo) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return no > d.n
}

func (d *fakeDisk) Tables(from []byte, _ map[segment.SegmentNo]struct{}, _ func(int64) error) (f Found, next []byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.from = append(d.from, from)
	if d.failing != nil && from != nil {
		return Found{}, nil, d.failing
	}
	if d.tables++; d.tables%3 != 0 {
		next = []byte{byte(d.tables)}
	}
	return Found{Bytes: 100}, next, nil
}

func (d *fakeDisk) Mend(_ context.Context, b compact.Block) (Outcome, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mends++
	return d.outcome(b)
}

func (d *fakeDisk) Empty(context.Context, segment.SegmentNo, func(int64) error) error { return nil }

// SyncLatency is 1 ms, and latency while segments are read.
func (d *fakeDisk) SyncLatency() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	reads := d.waited != d.seen
	d.seen = d.waited
	if reads {
		return d.latency
	}
	return time.Millisecond
}

func (d *fakeDisk) Load() ([]byte, error) { return d.state, nil }

func (d *fakeDisk) Save(b []byte) error {
	d.with(func() { d.state = bytes.Clone(b) })
	return nil
}

// TestPass: a pass reads every segment once, in order, and the tables to their end; it is spread over nine tenths of its interval, and the next
// one begins when that is over.
//
// Guards: rate (with mostRate the pass ended within a minute), passing (without its interval passes followed each other at once).
func TestPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 560 // 10 MiB a second in an hour
		d := &fakeDisk{n: n}
		w := New(d, time.Hour, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.Run(ctx) }()
		begun := time.Now()
		time.Sleep(30 * time.Minute)
		if r := w.Report(); r.Part < 0.5 || r.Part > 0.61 || !r.LastPass.IsZero() || r.Begun.IsZero() {
			t.Errorf("after half of the time: %+v", r)
		}
		time.Sleep(29 * time.Minute)
		took := w.Report().LastPass.Sub(begun)
		d.mu.Lock()
		if took < 50*time.Minute || took > 56*time.Minute || len(d.read) != n || !slices.IsSorted(d.read) || d.tables != 3 {
			t.Errorf("the pass took %v, read %d segments, and %d pieces of tables", took, len(d.read), d.tables)
		}
		d.mu.Unlock()
		time.Sleep(3 * time.Minute)
		d.mu.Lock()
		if next := d.at[n:]; len(next) == 0 || next[0].Sub(begun) < time.Hour {
			t.Errorf("%d segments of the next pass", len(next))
		}
		d.mu.Unlock()
		stop()
		<-done
		s, err := decodeState(d.state)
		if err != nil || s.Next < 10 || s.LastEnded.IsZero() {
			t.Errorf("stored: %+v, %v", s, err)
		}
	})
}

// TestRateIsBounded: a small disk is read within hours, a large one no faster than it bears, also when the time is over.
func TestRateIsBounded(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		todo   int64
		passed time.Duration
		want   float64
	}{
		{1 << 30, 0, leastRate}, {9 * 3600 * 5 * mib / 10, 0, 5 * mib}, {1 << 50, 0, mostRate}, {1 << 30, 2 * time.Hour, mostRate},
	} {
		if got := rate(c.todo, now.Add(-c.passed), now, time.Hour); got != c.want {
			t.Errorf("%d bytes, %v after the begin: %v a second, want %v", c.todo, c.passed, got, c.want)
		}
	}
}

// TestGivesWay: when syncs take twice as long while segments are read, fewer are.
//
// Guards: the brake in wait; removed once, and as many were read.
func TestGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{n: 1600, latency: time.Millisecond}
		w := New(d, 24*time.Hour, slog.New(slog.DiscardHandler))
		w.pace.brake.Feel(time.Millisecond) // at rest
		go w.Run(t.Context())
		time.Sleep(time.Minute)
		var free int64
		d.with(func() { free, d.latency = d.waited/mib, 2*time.Millisecond })
		time.Sleep(time.Minute)
		d.mu.Lock()
		defer d.mu.Unlock()
		if braked := d.waited/mib - free; free < 55 || braked > free/2 {
			t.Errorf("%d MiB at rest, %d while clients wait longer", free, braked)
		}
	})
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestToldOnce: what is lost, and what waits, is told once each, and tried again: the first each ten minutes, the second each 15 s, one
// block of a group at a time. Passes that meet it again say nothing.
//
// Guards: told and lost in settle, waits in mend, tried in retry; without any of them this fails.
func TestToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		block := func(group storage.GroupID, offset uint32) Bad {
			return Bad{compact.Block{Group: segment.GroupKey{Group: group}, From: table.Entry{Segment: 1, Offset: offset}}, storage.ErrCorrupt}
		}
		d := &fakeDisk{n: 1, bad: map[segment.SegmentNo][]Bad{1: {block(1, 4096), block(2, 8192), block(2, 12288), block(2, 16384)}}}
		d.outcome = func(b compact.Block) (Outcome, error) {
			if b.Group.Group == 1 {
				return Lost, errors.New("nobody")
			}
			return Later, errors.New("down")
		}
		w := New(d, 5*time.Minute, slog.New(slog.NewTextHandler(&log, nil)))
		go w.Run(t.Context())
		time.Sleep(9 * time.Minute)
		if r := w.Report(); r.LostBlocks != 1 || r.WaitingBlocks != 3 || len(r.Lost) != 1 {
			t.Errorf("%+v", r)
		}
		if c := w.Counts(); c.Found != 4 {
			t.Errorf("%d found", c.Found)
		}
		d.with(func() {
			if d.mends < 20 || d.mends > 45 {
				t.Errorf("%d tries", d.mends)
			}
		})
		time.Sleep(3 * time.Minute)
		if lost, later := strings.Count(log.String(), "is lost"), strings.Count(log.String(), "not written anew yet"); lost != 1 || later != 3 {
			t.Errorf("told of %d and %d:\n%s", lost, later, log.String())
		}
		d.with(func() {
			d.outcome = func(compact.Block) (Outcome, error) { return Mended, nil }
			d.bad = nil
		})
		time.Sleep(12 * time.Minute)
		if r := w.Report(); r.LostBlocks+r.WaitingBlocks != 0 || r.MendedBlocks != 4 {
			t.Errorf("%+v", r)
		}
	})
}

// TestRecycledSegmentsAreForgotten: a damaged segment counts until it is recycled, and no longer, although nothing more was moved out of it.
//
// Guards: emptyDamaged's look at what is sealed; removed once, and it counted for ten minutes more.
func TestRecycledSegmentsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{n: 2, bad: map[segment.SegmentNo][]Bad{2: {{compact.Block{From: table.Entry{Segment: 2}}, storage.ErrCorrupt}}}}
		d.outcome = func(compact.Block) (Outcome, error) { return Mended, nil }
		w := New(d, time.Hour, slog.New(slog.DiscardHandler))
		go w.Run(t.Context())
		time.Sleep(4 * time.Minute)
		if r := w.Report(); r.DamagedSegments != 1 || r.MendedBlocks != 1 {
			t.Errorf("%+v", r)
		}
		d.with(func() { d.n = 1 })
		time.Sleep(time.Minute)
		if r := w.Report(); r.DamagedSegments != 0 {
			t.Errorf("after it was recycled: %+v", r)
		}
	})
}

// TestNotComplete: a pass that cannot read the tables, or a segment, for a reason that does not last has not ended: it waits, tells why
// once, and goes on where it was.
//
// Guards: passes, and that tables ends no pass at an error (with next = nil LastPass was set); hold (without it thousands of tries).
func TestNotComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		away := storage.E("scrub", storage.KindUnavailable, "tables", nil)
		d := &fakeDisk{n: 2, failing: away, broken: map[segment.SegmentNo]error{2: away}}
		w := New(d, time.Hour, slog.New(slog.NewTextHandler(&log, nil)))
		go w.Run(t.Context())
		time.Sleep(10 * time.Minute)
		d.with(func() {
			if n := len(d.read); n < 5 || n > 45 || slices.Index(d.read, 1) != 0 || slices.Contains(d.read[1:], 1) || len(d.from) != 0 {
				t.Errorf("segments %v were read, and %d pieces of tables", d.read, len(d.from))
			}
			d.broken = nil
		})
		time.Sleep(10 * time.Minute)
		d.with(func() {
			if n := len(d.from); n < 5 || n > 45 || slices.ContainsFunc(d.from[1:], func(from []byte) bool { return !bytes.Equal(from, d.from[1]) }) {
				t.Errorf("tables were asked for from %v", d.from)
			}
			d.failing = nil
		})
		if r := w.Report(); !r.LastPass.IsZero() || r.DamagedPages != 0 || r.DamagedSegments != 0 {
			t.Errorf("a pass that is not complete: %+v", r)
		}
		if n := strings.Count(log.String(), "the scrub waits"); n != 2 {
			t.Errorf("told %d times:\n%s", n, log.String())
		}
		time.Sleep(time.Minute)
		if w.Report().LastPass.IsZero() {
			t.Error("it has not ended")
		}
	})
}

// TestAskedAgain: what somebody asked for is read once more when it could not be for a reason that does not last.
//
// Guards: askAgain; removed once, and it was not read.
func TestAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{n: 2, broken: map[segment.SegmentNo]error{2: storage.E("scrub", storage.KindUnavailable, "tables", nil)}}
		w := New(d, 0, slog.New(slog.DiscardHandler))
		go w.Run(t.Context())
		w.Ask(2)
		time.Sleep(time.Minute)
		d.with(func() {
			if n := len(d.read); n < 2 || n > 5 {
				t.Errorf("read %d times", n)
			}
			d.broken, d.read = nil, nil
		})
		time.Sleep(time.Minute)
		d.with(func() {
			if len(d.read) != 1 {
				t.Errorf("read %d times afterwards", len(d.read))
			}
		})
	})
}

// TestUnreadableSegment: a segment of which too little can be read is emptied, and the pass goes on behind it.
func TestUnreadableSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{n: 3, broken: map[segment.SegmentNo]error{2: storage.E("read log", storage.KindIO, "2", nil)}}
		w := New(d, time.Hour, slog.New(slog.DiscardHandler))
		go w.Run(t.Context())
		time.Sleep(30 * time.Minute)
		if r := w.Report(); r.DamagedSegments != 1 || r.LastPass.IsZero() {
			t.Errorf("%+v", r)
		}
	})
}

// TestListsNowAndThen: a pass lists the segments each minute, however many it reads meanwhile.
//
// Guards: list's look at the time; without it there was a list for each segment.
func TestListsNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{n: 2000}
		w := New(d, time.Hour, slog.New(slog.DiscardHandler))
		go w.Run(t.Context())
		time.Sleep(59 * time.Minute)
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.read) != 2000 || d.listed > 61 {
			t.Errorf("%d segments were read, listed %d times", len(d.read), d.listed)
		}
	})
}

// stillDisk has many segments, all sound, and reads them in no time.
type stillDisk struct {
	*fakeDisk
	infos []segment.SegmentInfo
}

func (d *stillDisk) Sealed() ([]segment.SegmentInfo, error) { return slices.Clone(d.infos), nil }

func (d *stillDisk) Check(segment.SegmentNo, func(int64) error) (Found, error) { return Found{}, nil }

// BenchmarkStep is what a step of a pass costs beside the read, by how many segments there are.
func BenchmarkStep(b *testing.B) {
	for _, n := range []int{1_000, 160_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			d := &stillDisk{fakeDisk: &fakeDisk{}}
			for i := range n {
				d.infos = append(d.infos, segment.SegmentInfo{No: segment.SegmentNo(i + 1), UsedBytes: 64 * mib, State: segment.SegmentSealed})
			}
			w := New(d, time.Nanosecond, slog.New(slog.DiscardHandler))
			for b.Loop() {
				w.step(b.Context())
			}
		})
	}
}
