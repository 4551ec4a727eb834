package extent

import (
	"testing"

	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/segment"
)

// TestCopiesBesideApply: an entry is applied that was copied to the end of the log. Between the moment when it is asked where its data
// lies and the moment when the live counts know of the block, the position must not move past that place: its segment would be
// recycled, and an acknowledged write be lost (I1).
//
// Guards, in applyAll: applying; in Advance: the same. Either was taken out once, and the block could not be read any more.
func TestCopiesBesideApply(t *testing.T) {
	cfg := moveConfig(t)
	r := newRig(t, cfg)
	r.byEpoch()
	r.ok(openSession(1))
	r.ok(r.write(0, 0, blocks(1, 2)))
	r.checkpoint()
	r.evict(0)

	data := blocks(2, 1)
	q := r.write(0, 4096, data)
	r.index++
	if _, err := r.g.Log().Append([]segment.Entry{{Index: r.index, Term: 1, Data: q.data()}}); err != nil {
		t.Fatal(err)
	}
	other, err := r.s.CreateGroup(segment.GroupKey{Group: 2, Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	fill := func() {
		index := other.Log().LastIndex()
		var end segment.Position
		for range 6 {
			index++
			if end, err = other.Log().Append([]segment.Entry{{Index: index, Term: 1, Data: openSession(1).data()}, {Index: index + 1, Term: 1, Data: make([]byte, 9*kib)}}); err != nil {
				t.Fatal(err)
			}
			index++
		}
		if err := r.s.Log().Wait(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	if begun, err := (replica{r.g}).Copy(); !begun || err != nil {
		t.Fatalf("nothing is copied: %v", err)
	}
	fill()
	from := (replica{r.g}).RecoveryFrom()
	once := true
	r.s.loaded = func() {
		if !once {
			return
		}
		once = false
		if moved, err := (replica{r.g}).Advance(); err != nil || moved {
			t.Errorf("the position moved: %v, %v", moved, err)
		}
		if err := other.Log().Reset(100, 1); err != nil { // it holds nothing
			t.Error(err)
		}
		_ = r.s.RemoveGroup(other.Key())
		for _, info := range r.s.Log().Segments() {
			if info.State == segment.SegmentSealed {
				_ = segments{r.s.log, &r.s.live}.Recycle(info.No)
			}
		}
	}
	r.g.Apply([]ApplyEntry{{Index: r.index, Term: 1, IsCommand: true, Data: q.data()}})
	if once {
		t.Fatal("no page was read: the test shows nothing")
	}
	r.wantRead(0, 4096, data)
	if moved, err := (replica{r.g}).Advance(); err != nil || !moved || (replica{r.g}).RecoveryFrom() <= from {
		t.Errorf("the position stays at segment %d: %v, %v", from, moved, err)
	}
	r.wantRead(0, 4096, data)
	r.reopen(cfg)
	r.wantRead(0, 4096, data)
	r.wantLive()
}

// TestCopiesNeedTheFormat: a build that does not know of copies takes them for damage, and must not open a store that may have some.
// It guards the format in Copy.
func TestCopiesNeedTheFormat(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	r.ok(openSession(1))
	if begun, err := (replica{r.g}).Copy(); begun || err != nil {
		t.Errorf("in format %d: %v, %v", storedir.FirstFormat, begun, err)
	}
	r.byEpoch()
	if begun, err := (replica{r.g}).Copy(); !begun || err != nil {
		t.Errorf("in format %d: %v, %v", storedir.PagesByEpoch, begun, err)
	}
}

// TestCopiesNeedLittleRoom: entries that hold a full disk are copied well below the half of the reserve that clients' overwrites leave,
// and not into the last segments, which the log needs. Guards: the condition in Copy (with half of the reserve in it, as for pulls, the first
// is not copied; without it, the second is).
func TestCopiesNeedLittleRoom(t *testing.T) {
	cfg := testConfig(memFS(t))
	r := newRig(t, cfg)
	r.byEpoch()
	r.ok(openSession(1))
	for _, test := range []struct {
		segments int64
		begun    bool
	}{{7, true}, {2, false}} {
		space := r.s.Space()
		taken := space.CapacityBytes - space.FreeBytes
		cfg.CapacityBytes = taken + test.segments*cfg.SegmentBytes
		cfg.ReserveBytes = 100 * cfg.SegmentBytes
		r.reopen(cfg)
		if begun, err := (replica{r.g}).Copy(); begun != test.begun || err != nil {
			t.Errorf("%d bytes are free, %d in a segment: copied %v, error %v", r.s.Space().FreeBytes, cfg.SegmentBytes, begun, err)
		}
	}
}
