package extent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
)

// verifyAll takes steps until the end of a volume of 100 extents, and returns the sum of the answers.
func (r *rig) verifyAll(rate int64) (sum op.VerifyAnswer) {
	r.t.Helper()
	for sum.Next < 100 {
		a, err := r.g.Verify(context.Background(), op.VerifyRequest{Volume: 1, First: sum.Next, End: 100, RateBytes: rate})
		if err != nil || !a.Busy && a.Next <= sum.Next {
			r.t.Errorf("from %d: %+v, %v", sum.Next, a, err)
			return sum
		}
		sum.Next = max(sum.Next, a.Next)
		sum.Extents = append(sum.Extents, a.Extents...)
		sum.Bytes += a.Bytes
		sum.Blocks += a.Blocks
		sum.Mended += a.Mended
		sum.Lost += a.Lost
		sum.Waiting += a.Waiting
		sum.DamagedPages += a.DamagedPages
	}
	return sum
}

// TestVerify: every live block is read and compared, in sealed segments and in the open one, in memory only or stored; what is bad is
// mended, once, and what nobody has is lost. A second look finds a mended volume sound.
//
// Guards I5: the comparison in blocks (removed once: nothing was found); ReadDisk for what memory has (with ReadAt block 11 was sound);
// unsavedExtents (without it extent 40 was not looked at).
func TestVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		cfg.Segment.CacheBytes = 1 << 20
		r := newScrubRig(t, cfg, 12)
		for x := range storage.ExtentIndex(30) {
			r.ok(r.write(1+x, 0, blocks(uint64(x)+500, 2)))
		}
		r.settle()
		r.ok(r.write(40, 8<<10, blocks(600, 1)))
		r.ok(r.write(2, 0, blocks(601, 1)))
		r.rot(r.at(3, 1))
		r.rot(r.at(11, 1))
		r.lose(7, storage.E("read copy", storage.KindIO, "group 1", nil))
		r.rot(r.at(7, 1))
		got := r.verifyAll(0)
		if len(got.Extents) != 32 || got.Blocks != 12+60+1 || got.Bytes != got.Blocks*storage.BlockSize || got.Mended != 2 || got.Lost != 1 || got.Waiting != 0 || got.DamagedPages != 0 {
			t.Errorf("%d extents, %+v", len(got.Extents), got)
		}
		r.wantAll(7)
		if s := r.s.Scrub(); s.MendedBlocks != 2 || s.LostBlocks != 1 {
			t.Errorf("the scrub says %+v", s)
		}
		r.put(7, 700)
		if again := r.verifyAll(0); again.Mended+again.Lost+again.Waiting != 0 || again.Blocks != got.Blocks {
			t.Errorf("again: %+v", again)
		}
		if asked := slices.Compact(r.asks()); !slices.Equal(asked, []int{3, 7, 11}) {
			t.Errorf("asked for %v", asked)
		}
	})
}

// TestVerifyAroundADamagedPage: a page that cannot be decoded is counted, what its extent holds is not known, and the rest is looked at.
//
// Guards: extent's second look, page by page; removed once, and the step failed.
func TestVerifyAroundADamagedPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scrubConfig(t)
		r := newScrubRig(t, cfg, 3)
		r.put(130, 130)
		r.ok(r.write(1, 0, blocks(5, 1)))
		r.settle()
		r.rot(r.at(1, 1))
		r.keep(table.PageKey{Volume: 1, Page: 2}, func(_, value []byte) []byte { return value[:len(value)-1] })
		r.reopen(cfg)
		r.s.MendFrom(r.source)
		got := r.verifyAll(0)
		if got.DamagedPages != 1 || got.Mended != 1 || got.Blocks != 4 || len(got.Extents) != 2 || !got.Extents[0].Damaged || got.Extents[1].Damaged {
			t.Errorf("%+v", got)
		}
	})
}

// TestVerifyIsPaced: it reads no faster than it may, and those who verify take turns, and hear after a few seconds that others do.
//
// Guards I9: Wait in blocks, and Turn; without either it was done at once.
func TestVerifyIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(memFS(t))
		r := newRig(t, cfg)
		r.ok(openSession(1))
		for x := range storage.ExtentIndex(64) {
			r.ok(r.write(x, 0, blocks(uint64(x), 32)))
		}
		begun := time.Now()
		done := make(chan op.VerifyAnswer)
		go func() { done <- r.verifyAll(1 << 20) }()
		time.Sleep(time.Second)
		turn, err := r.s.scrubber.Turn(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.g.Verify(t.Context(), op.VerifyRequest{Volume: 1, End: 100})
		if err != nil || !a.Busy || a.Blocks != 0 {
			t.Errorf("while another has the turn: %+v, %v", a, err)
		}
		turn.End()
		all := <-done
		if took := time.Since(begun); took < 7*time.Second || took > 20*time.Second || all.Bytes != 8<<20 {
			t.Errorf("%d bytes took %v", all.Bytes, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.g.Verify(ctx, op.VerifyRequest{Volume: 1, End: 100}); !errors.Is(err, context.Canceled) {
			t.Errorf("when nobody waits for it: %v", err)
		}
	})
}

// TestVerifyRefuses: a request that cannot be, a volume that is deleted.
func TestVerifyRefuses(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	r.ok(openSession(1))
	for kind, q := range map[storage.Kind]op.VerifyRequest{storage.KindInvalid: {End: 1}, storage.KindNone: {Volume: 9, End: 100}} {
		if a, err := r.g.Verify(t.Context(), q); storage.KindOf(err) != kind || err == nil && a.Next != 100 {
			t.Errorf("%+v: %+v, %v", q, a, err)
		}
	}
	r.ok(request{o: op.Op{Kind: op.DeleteVolume, Volume: 1, Seq: 1}})
	if _, err := r.g.Verify(t.Context(), op.VerifyRequest{Volume: 1, End: 100}); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

// digest proposes a Digest of extent 0 and returns what it found.
func (r *rig) digest(token uint64) op.ExtentContents {
	r.t.Helper()
	r.ok(request{o: op.Op{Kind: op.Digest, Volume: 1, Extent: 0, Seq: token}})
	x, err := r.g.Digested(r.t.Context(), 1, token)
	if err != nil {
		r.t.Fatal(err)
	}
	return x
}

// TestContents: what an extent holds is the same wherever its blocks lie, in memory or stored, before and after a start, and in a replica
// that was pulled; it is another when one block is, is gone, or lies at another place of the extent.
//
// Guards, each removed once: the sums and the bitmap in contents.add.
func TestContents(t *testing.T) {
	cfg := moveConfig(t)
	r := newRig(t, cfg)
	if x := r.digest(1); x.Contents != (op.Contents{}) || x.Index != r.index {
		t.Errorf("of nothing: %+v", x)
	}
	r.ok(openSession(1))
	r.ok(r.write(0, 0, blocks(1, 2)))
	r.ok(r.write(0, 64*storage.BlockSize, blocks(2, 1)))
	want := r.digest(2).Contents
	seen := map[op.Contents]string{{}: "nothing"}
	other := func(what string, token uint64) {
		t.Helper()
		got := r.digest(token).Contents
		if was, ok := seen[got]; ok {
			t.Errorf("%s: the same as with %s", what, was)
		}
		seen[got] = what
	}
	same := func(what string, token uint64) {
		t.Helper()
		if got := r.digest(token).Contents; got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	other("three blocks", 3)
	if _, changed := r.move(1, 1); changed == 0 {
		t.Fatal("nothing was moved")
	}
	same("moved", 4)
	r.checkpoint()
	r.evict(0)
	same("stored", 5)
	r.reopen(cfg)
	same("after a start", 6)
	r.ok(r.write(0, 0, blocks(9, 1)))
	other("another block", 7)
	r.ok(r.clear(0, 0, storage.BlockSize))
	other("without it", 8)
	r.ok(r.write(0, 65*storage.BlockSize, blocks(9, 1)))
	other("at another place", 9)
	r.ok(r.clear(0, 65*storage.BlockSize, storage.BlockSize))
	r.ok(r.write(0, 66*storage.BlockSize, blocks(9, 1)))
	other("one block further", 12)
	r.ok(r.clear(0, 66*storage.BlockSize, storage.BlockSize))
	r.ok(r.write(0, 0, blocks(1, 1)))
	same("as it was", 10)
	r.ok(r.clear(0, 0, storage.ExtentSize))
	if x := r.digest(11); x.Contents != (op.Contents{}) {
		t.Errorf("all cleared: %+v", x)
	}
}

// TestDigestIsOfItsIndex: what a Digest has found does not change with later writes, comes again after a start, is of the first of two with
// one token, and is forgotten after as many others as are remembered.
//
// Guards: digest before what follows is applied, known, maxDigests; each removed once.
func TestDigestIsOfItsIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := moveConfig(t)
		r := newRig(t, cfg)
		r.ok(openSession(1))
		r.ok(r.write(0, 0, blocks(1, 1)))
		r.checkpoint()
		first := r.digest(7)
		r.ok(r.write(0, 0, blocks(2, 1)))
		if again := r.digest(7); again != first {
			t.Errorf("again: %+v, want %+v", again, first)
		}
		r.reopen(cfg)
		if got, err := r.g.Digested(t.Context(), 1, 7); err != nil || got != first {
			t.Errorf("after a start: %+v, %v; want %+v", got, err, first)
		}
		for i := range uint64(maxDigests) {
			r.digest(100 + i)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, err := r.g.Digested(ctx, 1, 7); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("long after: %+v, %v", got, err)
		}
		if _, err := r.g.Digested(ctx, 2, 100); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("of another volume: %v", err)
		}
	})
}
