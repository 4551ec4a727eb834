package compact

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

// fakeDisk is a disk of segments in memory. Moved blocks go nowhere. It is used by one goroutine at a time.
type fakeDisk struct {
	room     Room
	segments map[segment.SegmentNo]*fakeSegment
	moved    []segment.SegmentNo // of each batch
	asked    int                 // for checkpoints
	finds    []segment.SegmentNo
	sweeps   int
	trims    int
	said     bytes.Buffer
	moving   func() // called in Move; nil: not

	victims, skipped, damaged int
}

type fakeSegment struct {
	live   int64
	hidden int64 // of those, the records do not lead to
	needed bool
	bad    bool // the first block cannot be read
	gone   bool // recycled
}

func (d *fakeDisk) Room() Room { d.room.WrittenBlocks++; return d.room }

func (d *fakeDisk) Segments(fn func(segment.SegmentNo, live.Segment)) {
	for no, s := range d.segments {
		if s.live > 0 {
			fn(no, live.Segment{Count: table.Count{Refs: s.live, Own: s.live}})
		}
	}
}

func (d *fakeDisk) MayEmpty(no segment.SegmentNo) error {
	switch s := d.segments[no]; {
	case s == nil || s.gone:
		return storage.E("compact", storage.KindNotFound, "", nil)
	case s.needed:
		return storage.E("compact", storage.KindConflict, "", nil)
	}
	return nil
}

func (d *fakeDisk) References(no segment.SegmentNo) int64 { return d.segments[no].live }

func (d *fakeDisk) blocks(no segment.SegmentNo, n int64) (blocks []Block) {
	for range n {
		blocks = append(blocks, Block{Group: segment.GroupKey{Group: 1}, From: table.Entry{Segment: no}})
	}
	return blocks
}

func (d *fakeDisk) Find(no segment.SegmentNo) ([]Block, error) {
	d.finds = append(d.finds, no)
	return d.blocks(no, d.segments[no].live-d.segments[no].hidden), nil
}

func (d *fakeDisk) Sweep(_ context.Context, nos map[segment.SegmentNo]struct{}, fn func([]Block) error) error {
	d.sweeps++
	for no := range nos {
		d.segments[no].hidden = 0
		if err := fn(d.blocks(no, d.segments[no].live)); err != nil {
			return err
		}
	}
	return nil
}

func (d *fakeDisk) Move(_ context.Context, blocks []Block) error {
	if d.moving != nil {
		d.moving()
	}
	for _, b := range blocks {
		s := d.segments[b.From.Segment]
		if s.bad {
			return fmt.Errorf("%w: %w", ErrUnreadable, storage.ErrCorrupt)
		}
		s.live--
	}
	d.moved = append(d.moved, blocks[0].From.Segment)
	return nil
}

func (d *fakeDisk) Checkpoint(groups map[segment.GroupKey]struct{}) { d.asked += len(groups) }
func (d *fakeDisk) SyncLatency() time.Duration                      { return 0 }
func (d *fakeDisk) Trim()                                           { d.trims++ }
func (d *fakeDisk) Victim()                                         { d.victims++ }
func (d *fakeDisk) Skipped()                                        { d.skipped++ }
func (d *fakeDisk) Damaged()                                        { d.damaged++ }

func newFakeDisk(n int, live int64) *fakeDisk {
	d := &fakeDisk{room: roomOf(12, 700*Capacity(mib)), segments: map[segment.SegmentNo]*fakeSegment{}}
	for i := range n {
		d.segments[segment.SegmentNo(i+1)] = &fakeSegment{live: live}
	}
	return d
}

// run runs a worker on the disk for some time.
func (d *fakeDisk) run(t *testing.T, times ...time.Duration) {
	ctx, stop := context.WithCancel(t.Context())
	w := New(d, d, slog.New(slog.NewTextHandler(&d.said, nil)))
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	for _, d := range times {
		time.Sleep(d)
		synctest.Wait()
	}
	stop()
	<-done
}

// TestWorker moves what lives in the emptiest segments, leaves those alone that the log needs, and those that are full; it waits for
// checkpoints when too many victims do.
func TestWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDisk(12, 100)
		d.segments[3].live, d.segments[5].needed, d.segments[7].live = 20, true, Capacity(mib)
		d.run(t, 2*time.Second)
		if want := []segment.SegmentNo{3, 1, 2, 4, 6, 8, 9, 10}; !slices.Equal(d.finds, want) {
			t.Errorf("emptied %v, want %v", d.finds, want)
		}
		if d.asked != leastEmptied || d.victims != leastEmptied || d.skipped != 0 || d.trims < 1 {
			t.Errorf("%d checkpoints asked for, %d victims, %d skipped, %d trims", d.asked, d.victims, d.skipped, d.trims)
		}
		for _, no := range d.finds {
			d.segments[no].gone = true
		}
		d.segments[5].needed = false
		d.run(t, 4*time.Second)
		if d.segments[5].live+d.segments[11].live+d.segments[12].live != 0 || d.segments[7].live != Capacity(mib) {
			t.Errorf("emptied %v", d.finds)
		}
	})
}

// TestWorkerHasNothingToDo while there is room, and does nothing while there is none for the copies.
func TestWorkerHasNothingToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDisk(9, 10)
		d.room = roomOf(500, 400*Capacity(mib))
		d.run(t, time.Minute)
		d.room = roomOf(-8, 400*Capacity(mib))
		d.run(t, time.Minute)
		if len(d.finds) != 0 {
			t.Errorf("emptied %v", d.finds)
		}
	})
}

// TestEmptiedIsComing: victims that wait for a checkpoint count as free, so that no more are emptied than are wanted; a checkpoint is asked
// for when half of what is to be free waits for it, or is missing, or nothing more is to be done, and not after each victim.
//
// Guards, in worker.go: Coming in room (without, all 40 are emptied), and for what nothing else holds only;
// checkpointDue (without, a checkpoint is asked for four times more); the call of checkpoint in step (without, the last case fails).
func TestEmptiedIsComing(t *testing.T) {
	for _, test := range []struct {
		above           int64 // MiB; ten are wanted
		victims         int   // and one more, perhaps
		asked, askedMax int
	}{{2, 8, 8, 9}, {6, 4, 0, 0}} {
		synctest.Test(t, func(t *testing.T) {
			d := newFakeDisk(40, 100)
			d.room = Room{Free: (400 + test.above) * mib, Reserve: 400 * mib, Goal: 10 * mib, Used: 500 * mib, SegmentBytes: mib}
			d.run(t, 4*time.Second)
			if n := len(d.finds); n < test.victims || n > test.victims+1 || d.asked < test.asked || d.asked > test.askedMax {
				t.Errorf("%d MiB: %d victims, %d checkpoints asked for", test.above, n, d.asked)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // a pull holds what was emptied
		d := newFakeDisk(46, 100)
		d.room = Room{Free: 380 * mib, Reserve: 400 * mib, Goal: 10 * mib, Used: 500 * mib, SegmentBytes: mib}
		w := New(d, d, slog.New(slog.DiscardHandler))
		for no, s := range d.segments {
			if s.needed = no <= 41; s.needed {
				w.emptied[no], s.live = time.Now(), 0
			}
		}
		if w.step(t.Context(), time.Now()); len(d.finds) != 1 {
			t.Errorf("victims that are held count as coming room: %d more were emptied", len(d.finds))
		}
		for _, s := range d.segments {
			s.needed = false
		}
		if w.step(t.Context(), time.Now().Add(time.Second)); len(d.finds) != 1 || w.State() != storage.CompactionRunning {
			t.Errorf("%d emptied though enough is coming; below the reserve it says %q", len(d.finds), w.State())
		}
	})
	d := newFakeDisk(1, 100)
	w := New(d, d, slog.New(slog.DiscardHandler))
	w.moved[segment.GroupKey{Group: 1}] = struct{}{}
	d.room = roomOf(500, 400*Capacity(mib))
	if w.step(t.Context(), time.Now()); d.asked != 1 || len(w.moved) != 0 {
		t.Errorf("nothing more is to be done: %d checkpoints asked for", d.asked)
	}
}

// TestEmptiedDoNotWaitForTheNext: when room goes while a victim is moved, checkpoints are asked for at once that free those before it, and once.
//
// Guards, in worker.go: the call of checkpoint in move, and owed there. Each was taken out once, and failed here.
func TestEmptiedDoNotWaitForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDisk(40, 3*batchBlocks)
		d.room = Room{Free: 406 * mib, Reserve: 400 * mib, Goal: 10 * mib, Used: 500 * mib, SegmentBytes: mib}
		w := New(d, d, slog.New(slog.DiscardHandler))
		var asked []int // before each batch
		d.moving = func() {
			asked = append(asked, d.asked)
			if len(d.finds) == 2 {
				d.room.Free = 403 * mib
				time.Sleep(roomEvery)
			}
		}
		for range 2 {
			w.step(t.Context(), time.Now())
		}
		if want := []int{0, 0, 0, 0, 1, 1}; !slices.Equal(asked, want) || d.asked != 2 {
			t.Errorf("%v checkpoints asked for before each batch, want %v, and %d in all, want 2", asked, want, d.asked)
		}
	})
}

// TestWorkerIsStubborn: what the records do not lead to is looked for in all tables, once many segments have some of it or room is
// short; a segment with a block that cannot be read is left, and that is said once.
func TestWorkerIsStubborn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDisk(3, 10)
		d.segments[1].hidden, d.segments[2].bad = 4, true
		d.run(t, time.Minute)
		if d.segments[1].live != 4 || d.segments[2].live != 10 || d.sweeps != 0 {
			t.Errorf("%d and %d left, %d sweeps", d.segments[1].live, d.segments[2].live, d.sweeps)
		}
		d.segments[1].live = 10
		d.room = roomOf(2, 700*Capacity(mib)) // urgent
		d.run(t, 2*stubbornFor+time.Minute)
		if d.segments[1].live != 0 || d.sweeps != 1 || d.segments[2].live != 10 {
			t.Errorf("%d and %d left, %d sweeps", d.segments[1].live, d.segments[2].live, d.sweeps)
		}
		if n := strings.Count(d.said.String(), "not given back"); d.damaged != 4 || n != 2 { // once by each worker
			t.Errorf("%d damaged, said %d times: %s", d.damaged, n, d.said.String())
		}
	})
}

// TestWorkerSays what it does. Guards, in worker.go: each call of say; without any of them a case fails.
func TestWorkerSays(t *testing.T) {
	enough, due, urgent, gone := roomOf(500, 400*Capacity(mib)), roomOf(12, 700*Capacity(mib)), roomOf(-6, 700*Capacity(mib)), roomOf(-98, 900*Capacity(mib))
	for _, c := range []struct {
		name     string
		room     Room
		segments int
		live     int64
		brake    float64
		want     storage.CompactionState
	}{
		{"there is room", enough, 9, 10, 1, storage.CompactionIdle},
		{"nobody writes, and all is full of what lives", enough, 9, Capacity(mib), 1, storage.CompactionIdle},
		{"victims wait for checkpoints", due, 9, 10, 1, storage.CompactionRunning},
		{"the same while clients wait longer", due, 9, 10, 0.25, storage.CompactionBraked},
		{"clients are about to wait", urgent, 9, 10, 0.25, storage.CompactionBehind},
		{"all is full of what lives", due, 9, Capacity(mib), 1, storage.CompactionNothingToWin},
		{"nothing is there", urgent, 0, 0, 1, storage.CompactionNothingToWin},
		{"no room for copies", gone, 9, 10, 1, storage.CompactionNoRoom},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newFakeDisk(c.segments, c.live)
				d.room = c.room
				w := New(d, d, slog.New(slog.DiscardHandler))
				if got := w.State(); got != storage.CompactionIdle {
					t.Errorf("before it runs it says %q", got)
				}
				now := time.Now()
				w.pace.look(now)
				w.pace.brake.taken = 1 - c.brake
				if c.want == storage.CompactionIdle && c.live == Capacity(mib) {
					w.pace.quiet = now.Add(-time.Minute)
				}
				d.moving = func() {
					if got := w.State(); got != c.want {
						t.Errorf("while it moves it says %q, want %q", got, c.want)
					}
				}
				for range leastEmptied + 1 {
					w.step(t.Context(), now)
				}
				if got := w.State(); got != c.want {
					t.Errorf("it says %q, want %q", got, c.want)
				}
			})
		})
	}
}

// TestInVain: nothing to win, or no room for copies, for some time is in vain; neither is it at once, nor when there is something again.
// Guards, in worker.go: say's note of since when; vainAfter.
func TestInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDisk(9, Capacity(mib))
		d.room = roomOf(2, 700*Capacity(mib)) // urgent
		w := New(d, d, slog.New(slog.DiscardHandler))
		step := func(what string, passed time.Duration, want bool) {
			t.Helper()
			time.Sleep(passed)
			w.step(t.Context(), time.Now())
			if got := w.InVain(); got != want {
				t.Errorf("%s: %v, says %q", what, got, w.State())
			}
		}
		step("at once", 0, false)
		step("soon", vainAfter-time.Second, false)
		step("for some time", time.Second, true)
		d.room = roomOf(-98, 900*Capacity(mib))
		step("and no room for copies", 2*time.Second, true)
		d.room, d.segments[3].live = roomOf(2, 700*Capacity(mib)), 10
		step("something is to win", 2*time.Second, false)
		d.segments[3].gone = true
		step("it was won", 2*time.Second, false)
		step("nothing for some time again", vainAfter, true)
		d.room = roomOf(500, 400*Capacity(mib))
		step("there is room", 2*time.Second, false)
	})
}
