package extent

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
)

// rot changes bytes of the block on the disk.
func (r *rig) rot(e table.Entry) {
	r.t.Helper()
	f, err := r.s.cfg.FS.OpenReadWrite(fmt.Sprintf("%s/log/%010d.seg", testDir, e.Segment), vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.WriteAt([]byte("rot"), int64(e.Offset)+77)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// readThrough reads the first blocks of extent 0, with a good copy of what is rotten, and returns how often it was asked for.
func (r *rig) readThrough(n int, copyOf []byte) (got []byte, asked int) {
	r.t.Helper()
	req := op.ReadRequest{Volume: 1, Length: uint32(n * storage.BlockSize), Epoch: 1}
	got = make([]byte, n*storage.BlockSize)
	err := r.g.Read(req, got, make([]uint32, n), make([]bool, n), func(_ Unreadable, dst []byte) error {
		asked++
		copy(dst, copyOf)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return got, asked
}

// TestUnreadableBlockIsWrittenAnew guards I5's repair: a block that the disk does not give back is brought from elsewhere once. Then it
// is here again, also after a power cut, and counts as it did.
func TestUnreadableBlockIsWrittenAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := moveConfig(t)
		cfg.Segment.CacheBytes = 1
		r := newRig(t, cfg)
		r.ok(openSession(1))
		want := append(blocks(1, 1), blocks(2, 1)...)
		r.ok(r.write(0, 0, want))
		r.ok(r.write(0, 16<<10, blocks(10, 2))) // so that it is not the last of the log
		r.checkpoint()
		r.g.Log().Compact(r.index)
		before, rotten := r.at(0, 1), r.at(1, 1)
		r.rot(rotten)
		got, asked := r.readThrough(2, want[storage.BlockSize:])
		if !bytes.Equal(got, want) || asked != 1 {
			t.Errorf("asked %d times, the right bytes: %v", asked, bytes.Equal(got, want))
		}
		synctest.Wait()
		if now := r.at(1, 1); now.Position() == rotten.Position() || now.Sum != rotten.Sum || r.at(0, 1) != before {
			t.Errorf("it lies at %v, was at %v", now, rotten)
		}
		if len(r.s.mends.waiting) != 0 {
			t.Error("it still counts as waiting")
		}
		if n := testutil.ToFloat64(r.s.metrics.mended); n != 1 {
			t.Errorf("%v blocks are said to be mended", n)
		}
		if got, asked = r.readThrough(2, nil); !bytes.Equal(got, want) || asked != 0 {
			t.Errorf("asked %d times for what is mended, the right bytes: %v", asked, bytes.Equal(got, want))
		}
		r.wantLive()
		r.checkpoint()
		cfg.FS = cfg.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
		_ = r.s.Close()
		r.s = openStore(t, cfg)
		r.recover()
		if got, asked = r.readThrough(2, nil); !bytes.Equal(got, want) || asked != 0 {
			t.Errorf("after a power cut: asked %d times, the right bytes: %v", asked, bytes.Equal(got, want))
		}
		r.wantLive()
	})
}

// TestMendChangesNothingElse: what is not the block any more, by its place or its bytes, is not written over, and where there is no
// room nothing is written.
func TestMendChangesNothingElse(t *testing.T) {
	r := newRig(t, moveConfig(t))
	r.ok(openSession(1))
	first := blocks(1, 1)
	r.ok(r.write(0, 0, first))
	old := r.at(0, 1)
	m := mend{g: r.g, page: table.PageKey{Volume: 1}, entry: old, data: bytes.Clone(first)}
	m.data[7]++
	end := r.s.log.End()
	if _, err := r.s.mend(t.Context(), m); !errors.Is(err, storage.ErrCorrupt) || r.s.log.End() != end {
		t.Errorf("other bytes: %v, the log grew: %v", err, r.s.log.End() != end)
	}
	m.data[7]--
	second := blocks(2, 1)
	r.ok(r.write(0, 0, second))
	end = r.s.log.End()
	if _, err := r.s.mend(t.Context(), m); err != nil || r.s.log.End() != end {
		t.Errorf("overwritten meanwhile: %v, the log grew: %v", err, r.s.log.End() != end)
	}
	r.wantRead(0, 0, second)
	cfg := moveConfig(t)
	cfg.CapacityBytes, cfg.ReserveBytes = 1<<20, 1<<50
	r = newRig(t, cfg)
	r.ok(openSession(1))
	r.ok(r.write(0, 0, first))
	m.g, m.entry, end = r.g, r.at(0, 1), r.s.log.End()
	if _, err := r.s.mend(t.Context(), m); !errors.Is(err, storage.ErrNoSpace) || r.s.log.End() != end {
		t.Errorf("without room: %v, the log grew: %v", err, r.s.log.End() != end)
	}
}

// TestMendsAreBounded: a block waits once, and not more of them than there are places.
func TestMendsAreBounded(t *testing.T) {
	s := &Store{mends: newMends()}
	g := &Group{store: s}
	data := make([]byte, storage.BlockSize)
	for i := range uint32(3 * maxMends) {
		for range 2 {
			g.mendLater(Unreadable{Block: int(i)}, table.Entry{Segment: 1, Offset: i * storage.BlockSize}, data)
		}
	}
	if len(s.mends.queue) != maxMends || len(s.mends.waiting) != maxMends {
		t.Errorf("%d wait, %d are known", len(s.mends.queue), len(s.mends.waiting))
	}
}
