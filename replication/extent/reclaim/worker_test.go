package reclaim

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// disk is a store in memory, as workers see one. It is used by the test and a worker in turns.
type disk struct {
	said     strings.Builder // by the log
	dead     []segment.SegmentNo
	refuse   map[segment.SegmentNo]error
	recycled []segment.SegmentNo
	last     segment.SegmentNo

	purges   int // steps that are left; the last one frees
	purgeErr error

	goesOn   goesOn
	room     Room
	failed   bool
	replicas []*fakeReplica
}

func (d *disk) Dead() []segment.SegmentNo { return slices.Clone(d.dead) }

func (d *disk) Recycle(no segment.SegmentNo) error {
	if err := d.refuse[no]; err != nil {
		return err
	}
	d.recycled = append(d.recycled, no)
	d.dead = slices.DeleteFunc(d.dead, func(n segment.SegmentNo) bool { return n == no })
	return nil
}

func (d *disk) Last() segment.SegmentNo { return d.last + d.goesOn.by() }

// goesOn is how positions go on by themselves.
type goesOn struct {
	since time.Time
	each  time.Duration // 0: they stay
}

func (g goesOn) by() segment.SegmentNo {
	if g.each == 0 {
		return 0
	}
	return segment.SegmentNo(time.Since(g.since) / g.each)
}

func (d *disk) Purge() (freed, more bool, err error) {
	if d.purges == 0 || d.purgeErr != nil {
		return false, false, d.purgeErr
	}
	d.purges--
	return d.purges == 0, true, nil
}

type fakeReplica struct {
	key            segment.GroupKey
	changed, due   bool
	freezes        uint64
	from           segment.SegmentNo
	goesOn         goesOn
	held           bool // Advance finds nothing to do
	advanceErr     error
	asked, advance int

	uncovered      int64
	copyErr        error
	copies, copied int // begun; those that an Advance has found
}

func (r *fakeReplica) Key() segment.GroupKey           { return r.key }
func (r *fakeReplica) Changed() (bool, uint64)         { return r.changed, r.freezes }
func (r *fakeReplica) CheckpointDue() bool             { return r.due }
func (r *fakeReplica) RequestCheckpoint()              { r.asked++ }
func (r *fakeReplica) RecoveryFrom() segment.SegmentNo { return r.from + r.goesOn.by() }

func (r *fakeReplica) UncoveredBytes() int64 { return r.uncovered }

func (r *fakeReplica) Copy() (bool, error) {
	if r.copyErr == nil {
		r.copies++
	}
	return r.copyErr == nil, r.copyErr
}

func (r *fakeReplica) Advance() (bool, error) {
	r.advance++
	if r.copied < r.copies {
		r.copied, r.from = r.copies, r.from+100
		return true, nil
	}
	return !r.held && r.advanceErr == nil, r.advanceErr
}

func (d *disk) worker() *Worker {
	return New(Config{Segments: d, Tables: d, LateSegments: 4, SegmentBytes: 1 << 20, Logger: slog.New(slog.NewTextHandler(&d.said, nil)),
		Room: func() (Room, bool) { return d.room, !d.failed },
		Replicas: func() (all []Replica) {
			for _, r := range d.replicas {
				all = append(all, r)
			}
			return all
		}})
}

// TestRecycle: a segment that is refused stands in nobody's way; an error ends the round, and is told.
func TestRecycle(t *testing.T) {
	d := &disk{dead: []segment.SegmentNo{1, 2, 3, 4, 5}, refuse: map[segment.SegmentNo]error{
		1: storage.E("recycle", storage.KindConflict, "1", nil), 3: storage.E("recycle", storage.KindNotFound, "3", nil)}}
	d.worker().Recycle()
	if !slices.Equal(d.recycled, []segment.SegmentNo{2, 4, 5}) || d.said.Len() > 0 {
		t.Errorf("recycled %v, said %q", d.recycled, d.said.String())
	}
	d = &disk{dead: []segment.SegmentNo{1, 2}, refuse: map[segment.SegmentNo]error{1: storage.E("recycle", storage.KindIO, "1", nil)}}
	d.worker().Recycle()
	if len(d.recycled) > 0 || !strings.Contains(d.said.String(), "not recycled") {
		t.Errorf("recycled %v, said %q", d.recycled, d.said.String())
	}
}

// TestRefusedIsOfferedAgain: a segment that the log did not let go is offered until it does, although nothing else happens on the store, and
// however much room there is; one that is gone is not. So is one of which nobody has said that it is dead.
func TestRefusedIsOfferedAgain(t *testing.T) {
	conflict := storage.E("recycle", storage.KindConflict, "1", nil)
	d := &disk{dead: []segment.SegmentNo{1, 2}, refuse: map[segment.SegmentNo]error{1: conflict, 2: conflict}}
	w, now := d.worker(), time.Now()
	after := func(pass time.Duration, want ...segment.SegmentNo) {
		t.Helper()
		for end := now.Add(pass); now.Before(end); {
			now = now.Add(Every)
			w.look(now)
		}
		if !slices.Equal(d.recycled, want) {
			t.Errorf("recycled %v, want %v", d.recycled, want)
		}
	}
	w.Checkpointed(false)
	after(3 * Every)
	d.refuse = map[segment.SegmentNo]error{2: storage.E("recycle", storage.KindNotFound, "2", nil)}
	after(Every, 1)
	d.dead = []segment.SegmentNo{3} // nobody has said so: whoever counted it as in use has let it go
	after(Every, 1)
	after(offerAllEvery, 1, 3)
}

// TestPurge: a purge begins with the worker, goes on until nothing is left, and what it has freed is recycled; after an error
// the next call tries again.
func TestPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{purges: 3, dead: []segment.SegmentNo{7}}
		w := d.worker()
		go w.Run(t.Context())
		synctest.Wait()
		if d.purges != 0 || len(d.recycled) != 1 {
			t.Errorf("%d steps are left, %v are recycled", d.purges, d.recycled)
		}
		d.purges, d.purgeErr = 2, errors.New("broken")
		w.Purge()
		synctest.Wait()
		d.purgeErr = nil
		if !strings.Contains(d.said.String(), "broken") || d.purges != 2 {
			t.Errorf("after an error %d steps are left, and it says %q", d.purges, d.said.String())
		}
		w.Purge()
		synctest.Wait()
		if d.purges != 0 {
			t.Errorf("%d steps are left", d.purges)
		}
	})
}

// TestChangesGrowOld: how old changes become before a checkpoint is asked for says the room there is; the age counts from the
// last freeze, and a request that was lost is repeated.
func TestChangesGrowOld(t *testing.T) {
	for _, test := range []struct {
		room Room
		due  bool
		want time.Duration
	}{
		{Enough, false, MaxCheckpointAge}, {Enough, true, shortOfRoomAge}, {Wasted, false, wastedAge}, {Short, false, shortOfRoomAge}, {Full, false, fullAge},
	} {
		t.Run(fmt.Sprintf("room %d, due %v", test.room, test.due), func(t *testing.T) {
			r := &fakeReplica{freezes: 1, due: test.due}
			d := &disk{room: test.room, replicas: []*fakeReplica{r}, dead: []segment.SegmentNo{1}}
			w, now := d.worker(), time.Now()
			w.look(now)
			if r.asked > 0 {
				t.Fatal("asked though nothing has changed")
			}
			if recycled := len(d.recycled) > 0; recycled != (test.room == Full) {
				t.Errorf("recycled %v", d.recycled)
			}
			r.changed = true
			now = now.Add(time.Hour)
			r.freezes++ // all that is older is in a checkpoint
			w.look(now)
			if w.look(now.Add(test.want - time.Millisecond)); r.asked > 0 {
				t.Fatalf("asked before %v", test.want)
			}
			if w.look(now.Add(test.want)); r.asked != 1 {
				t.Fatalf("asked %d times after %v", r.asked, test.want)
			}
			d.failed = true
			if w.look(now.Add(2 * time.Hour)); r.asked != 1 {
				t.Error("asked on a failed disk")
			}
		})
	}
}

// TestIdleReplicaHoldsNoLog: a recovery position that lies behind is moved; one that does not move is asked for a checkpoint
// when it is late, once for every segment that the log has gone on.
func TestIdleReplicaHoldsNoLog(t *testing.T) {
	near, idle := &fakeReplica{from: 9}, &fakeReplica{key: segment.GroupKey{Group: 2}, from: 3}
	held := &fakeReplica{key: segment.GroupKey{Group: 3}, from: 7, held: true}
	d := &disk{last: 10, replicas: []*fakeReplica{near, idle, held}}
	w := d.worker()
	w.Checkpointed(false)
	if near.advance != 0 || idle.advance != 1 || idle.asked != 0 || held.advance != 1 || held.asked != 0 {
		t.Errorf("near %+v, idle %+v, held %+v", near, idle, held)
	}
	d.last = 11 // four behind
	for range 3 {
		w.Checkpointed(false)
	}
	if held.asked != 1 {
		t.Errorf("asked %d times, though the log stood still", held.asked)
	}
	d.last = 12
	w.Checkpointed(false)
	w.Forget(held.key)
	if w.Checkpointed(false); held.asked != 3 {
		t.Errorf("asked %d times", held.asked)
	}
	idle.advanceErr = errors.New("broken")
	if w.Checkpointed(false); !strings.Contains(d.said.String(), "broken") {
		t.Errorf("it says %q", d.said.String())
	}
}

// TestStalledReplicaHoldsNoLog: entries are copied of a replica that holds the log although it was asked for a checkpoint; sooner when
// room is short, but not before a checkpoint could have moved the position, and not so that the copies are more than an eighth of what is
// written. Its position moves without anybody's checkpoint. It guards stuckSince (tried: without, "short of room, and moving" fails).
func TestStalledReplicaHoldsNoLog(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		name      string
		room      Room
		uncovered int64 // of a second replica
		last      segment.SegmentNo
		moves     time.Duration // the log and the position go on so often; 0: not
		copies    int
	}{
		{"not long ago", Enough, 0, 7, 0, 0}, {"long ago", Enough, 0, 8, 0, 1}, {"short of room", Short, 0, 2, 0, 1},
		{"short of room, and moving", Short, 0, 2, shortOfRoomAge, 0}, {"full, and moving", Full, 0, 2, fullAge, 0}, {"full", Full, 0, 2, 0, 1},
		{"short of room, moving and long ago", Short, 0, 8, shortOfRoomAge, 1},
		{"too much", Enough, mib, 8, 0, 0}, {"too much for now", Enough, mib, 17, 0, 1}, {"it is near", Full, 0, 1, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, other := &fakeReplica{held: true, uncovered: 1}, &fakeReplica{key: segment.GroupKey{Group: 2}, held: true, uncovered: test.uncovered,
					copyErr: errors.New("unreadable")}
				d := &disk{last: test.last, room: test.room, replicas: []*fakeReplica{r, other}, dead: []segment.SegmentNo{1}}
				d.goesOn = goesOn{time.Now(), test.moves}
				r.goesOn, other.goesOn = d.goesOn, d.goesOn
				w := d.worker()
				if test.room == Enough {
					w.Checkpointed(false)
				}
				go w.Run(t.Context())
				time.Sleep(3 * shortOfRoomAge)
				synctest.Wait()
				if r.copies != test.copies {
					t.Fatalf("%d copies", r.copies)
				}
				if test.copies > 0 && (r.copied == 0 || len(d.recycled) == 0 || !strings.Contains(d.said.String(), "unreadable")) {
					t.Errorf("the position has not moved, or nothing was recycled: %+v; it says %q", r, d.said.String())
				}
			})
		})
	}
}
