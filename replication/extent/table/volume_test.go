package table

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// TestExactlyOnceAndFencing is the table of what a group answers, step by step. Each step says kind, duplicate and
// detail. It guards the lines of volume.go and state.go that say so (I2, I3, I4): each was removed once, and this test failed.
func TestExactlyOnceAndFencing(t *testing.T) {
	type step struct {
		name   string
		o      op.Op
		kind   storage.Kind
		dup    bool
		detail uint64
		low    uint64 // of the window in the result, if there is one
	}
	clearOp := func(session storage.SessionID, seq uint64) op.Op {
		return op.Op{Kind: op.Clear, Volume: 1, Length: 4096, Session: session, Seq: seq, Epoch: 1, Generation: 1}
	}
	with := func(o op.Op, edit func(*op.Op)) op.Op { edit(&o); return o }
	open := func(session storage.SessionID, generation storage.Generation) op.Op {
		return op.Op{Kind: op.OpenSession, Volume: 1, Session: session, Generation: generation, Epoch: 1}
	}
	closeOp := func(session storage.SessionID) op.Op {
		return op.Op{Kind: op.CloseSession, Volume: 1, Session: session}
	}
	const term = 7
	steps := []step{
		{name: "a session that was never opened", o: clearOp(5, 1), kind: storage.KindFenced},
		{name: "open", o: open(5, 1)},
		{name: "open again", o: open(5, 1), dup: true},
		{name: "open an older one", o: open(4, 1), kind: storage.KindFenced},
		{name: "first", o: clearOp(5, 1)},
		{name: "first again", o: clearOp(5, 1), dup: true},
		{name: "third before second", o: clearOp(5, 3)},
		{name: "third again", o: clearOp(5, 3), dup: true},
		{name: "beyond the window", o: clearOp(5, 1026), kind: storage.KindInvalid},
		{name: "last of the window", o: clearOp(5, 1025)},
		{name: "merged in another term", o: with(clearOp(5, 2), func(o *op.Op) { o.ReadTerm = term - 1 }), kind: storage.KindConflict},
		{name: "the refused number again", o: with(clearOp(5, 2), func(o *op.Op) { o.ReadTerm = term })},
		{name: "a higher epoch", o: op.Op{Kind: op.SetEpoch, Volume: 1, Epoch: 3}},
		{name: "the same epoch", o: op.Op{Kind: op.SetEpoch, Volume: 1, Epoch: 3}, dup: true, detail: 3},
		{name: "a lower epoch", o: op.Op{Kind: op.SetEpoch, Volume: 1, Epoch: 2}, dup: true, detail: 3},
		{name: "a write of the finished epoch", o: clearOp(5, 4), kind: storage.KindFenced, detail: 3},
		{name: "a retry of an applied write of the finished epoch", o: clearOp(5, 3), dup: true},
		{name: "the same number at the epoch", o: with(clearOp(5, 4), func(o *op.Op) { o.Epoch = 3 })},
		{name: "takeover", o: op.Op{Kind: op.SetGeneration, Volume: 1, Generation: 2}},
		{name: "takeover again", o: op.Op{Kind: op.SetGeneration, Volume: 1, Generation: 2}, dup: true},
		{name: "a takeover that came late", o: op.Op{Kind: op.SetGeneration, Volume: 1, Generation: 1}, kind: storage.KindFenced, detail: 2},
		{name: "a write of the old owner", o: with(clearOp(5, 5), func(o *op.Op) { o.Epoch = 3 }), kind: storage.KindFenced, detail: 2},
		{name: "the old owner opens", o: open(6, 1), kind: storage.KindFenced, detail: 2},
		{name: "the new owner opens", o: open(7, 2)},
		{name: "close the old one", o: closeOp(5), low: 4},
		{name: "close it again", o: closeOp(5), dup: true, low: 4},
		{name: "a closed session writes", o: with(clearOp(5, 5), func(o *op.Op) { o.Epoch, o.Generation = 3, 2 }), kind: storage.KindFenced},
		{name: "even what it had applied", o: clearOp(5, 1), kind: storage.KindFenced},
		{name: "close one that was never opened", o: closeOp(9)},
		{name: "it cannot be opened any more", o: open(9, 2), kind: storage.KindFenced},
		{name: "not whole blocks", o: with(clearOp(7, 1), func(o *op.Op) { o.Kind, o.Offset, o.Epoch, o.Generation = op.Write, 1, 3, 2 }), kind: storage.KindInvalid},
		{name: "delete", o: op.Op{Kind: op.DeleteVolume, Volume: 1}},
		{name: "delete again", o: op.Op{Kind: op.DeleteVolume, Volume: 1}, dup: true},
		{name: "write to it", o: clearOp(7, 1), kind: storage.KindNotFound},
		{name: "open it", o: open(10, 9), kind: storage.KindNotFound},
		{name: "close", o: closeOp(7), kind: storage.KindNotFound},
		{name: "set its epoch", o: op.Op{Kind: op.SetEpoch, Volume: 1, Epoch: 9}, kind: storage.KindNotFound},
		{name: "nothing", o: op.Op{Kind: op.Noop}},
	}
	group := NewState()
	for _, s := range steps {
		res, _ := group.Decide(&s.o, term)
		if res.Kind != s.kind || res.Duplicate != s.dup || res.Detail != s.detail {
			t.Errorf("%s: %v (duplicate %v, detail %d) %s; want %v (%v, %d)", s.name, res.Kind, res.Duplicate, res.Detail, res.Text, s.kind, s.dup, s.detail)
		}
		if low := s.low; low > 0 && (res.Window == nil || res.Window.Low != low || !res.Window.Applied(1025)) {
			t.Errorf("%s: window %+v", s.name, res.Window)
		}
		if v := group.Volume(1); v != nil {
			key := VolumeKey(KeyVolume, 1, 1)
			again, err := decodeVolume(key, v.AppendValue(nil, key))
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			if diff := cmp.Diff(v.State(), again.State()); diff != "" {
				t.Errorf("%s: %s", s.name, diff)
			}
		}
	}
}

// What was written before blocks were counted stays as it is: whatever is counted from then on would be wrong.
func TestUnknownMapped(t *testing.T) {
	key := VolumeKey(KeyVolume, 1, 1)
	old := NewVolume()
	old.mapped = unknownMapped
	old.openSession(&op.Op{Volume: 1, Session: 3})
	value := old.AppendValue(nil, key)
	if value[0] != 1 || len(value) != volumeFixedLen+sessionLen+4 {
		t.Fatalf("version %d in %d bytes", value[0], len(value))
	}
	v, err := decodeVolume(key, value)
	if err != nil {
		t.Fatal(err)
	}
	v.BumpMapped(5)
	if s := v.State(); s.Mapped != -1 || len(s.Sessions) != 1 {
		t.Errorf("read as %+v", s)
	}
	if again := v.AppendValue(nil, key); !bytes.Equal(again, value) {
		t.Error("it is written otherwise than it was read")
	}
	v.deleteVolume(&op.Op{})
	if v, err = decodeVolume(key, v.AppendValue(nil, key)); err != nil || v.mapped != 0 {
		t.Errorf("deleted: %+v, %v", v, err)
	}
	for _, mapped := range []int64{-2, 1} {
		v.mapped = mapped
		if _, err := decodeVolume(key, v.AppendValue(nil, key)); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("deleted with %d blocks: %v", mapped, err)
		}
	}
}

// The results of closing are kept for the last sixteen sessions; what is older is said to be unknown, never empty.
func TestClosedWindowsAreKept(t *testing.T) {
	v := NewVolume()
	for id := storage.SessionID(1); id <= 20; id++ {
		v.openSession(&op.Op{Volume: 1, Session: id})
		v.admit(&op.Op{Kind: op.Clear, Volume: 1, Session: id, Seq: 1, Length: 4096}, 1)
		v.closeSession(&op.Op{Volume: 1, Session: id})
	}
	for id := storage.SessionID(1); id <= 20; id++ {
		r := v.closeSession(&op.Op{Volume: 1, Session: id})
		switch {
		case id <= 4 && r.Kind != storage.KindConflict:
			t.Errorf("session %d: %+v", id, r)
		case id > 4 && (r.Kind != storage.KindNone || r.Window == nil || r.Window.Low != 1):
			t.Errorf("session %d: %+v", id, r)
		}
	}
	for id := storage.SessionID(100); id < 100+maxLiveSessions; id++ {
		if r := v.openSession(&op.Op{Volume: 1, Session: id}); r.Kind != storage.KindNone {
			t.Fatalf("%+v", r)
		}
	}
	if r := v.openSession(&op.Op{Volume: 1, Session: 5000}); r.Kind != storage.KindConflict {
		t.Errorf("one session more than are allowed: %+v", r)
	}
}

// TestRecordsOfOtherLengths: a record that is whole, and longer or shorter than it can be, is refused, with its length.
func TestRecordsOfOtherLengths(t *testing.T) {
	key := VolumeKey(KeyVolume, 1, 1)
	live := LiveKey(1, 1)
	for name, decode := range map[string]func() error{
		"a longer key": func() error {
			k := append(key, 0)
			_, _, err := StoredVolume(k, NewVolume().AppendValue(nil, k))
			return err
		},
		"a shorter key": func() error {
			k := key[:16]
			_, _, err := StoredVolume(k, NewVolume().AppendValue(nil, k))
			return err
		},
		"a longer live count": func() error {
			_, _, _, err := DecodeLive(live, Seal(live, make([]byte, 9)))
			return err
		},
		"a live count at another key": func() error { _, _, _, err := DecodeLive(key, LiveValue(key, Count{1, 1}, false)); return err },
	} {
		if err := decode(); !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), ", not ") || strings.Contains(err.Error(), "nil") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
