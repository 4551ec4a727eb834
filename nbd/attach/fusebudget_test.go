package attach

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// However many devices are busy, together they hold no more than the limit and one request each; one that is busy alone has
// half, and one that was idle is not kept waiting by it. The line is the condition in take.
func TestFUSEBudget(t *testing.T) {
	const request, limit = 10, 1000
	synctest.Test(t, func(t *testing.T) {
		b := newFUSEBudget(limit)
		fill := func(s *fuseShare) (done *atomic.Int64) {
			done = new(atomic.Int64)
			go func() {
				for range 1000 {
					s.take(request)
					done.Add(1)
				}
			}()
			synctest.Wait()
			return done
		}
		var shares []*fuseShare
		var counts []*atomic.Int64
		for range 48 {
			s := &fuseShare{budget: b}
			shares = append(shares, s)
			counts = append(counts, fill(s))
		}
		if n := counts[0].Load() * request; n < limit/2-request || n > limit/2 {
			t.Errorf("the first, busy alone, has %d of %d", n, limit)
		}
		for i, c := range counts {
			if c.Load() == 0 {
				t.Errorf("device %d has nothing", i)
			}
		}
		if b.used > limit+48*request {
			t.Errorf("all together hold %d of %d", b.used, limit)
		}
		others := func() (n int64) {
			for _, c := range counts[1:] {
				n += c.Load()
			}
			return n
		}
		before, first := others(), counts[0].Load()
		for range first {
			shares[0].give(request)
		}
		synctest.Wait()
		if others() <= before {
			t.Error("what was given back went to none of the others")
		}
		if counts[0].Load() <= first {
			t.Error("who has given everything back gets nothing any more")
		}
		if b.used < limit-request {
			t.Errorf("all together hold %d of %d, and wait", b.used, limit)
		}
		for i, s := range shares { // what a device was asked for is answered also while it stops
			s.stop()
			synctest.Wait()
			if n := counts[i].Load(); n != 1000 {
				t.Errorf("device %d waits with %d of 1000 requests though it stops", i, n)
			}
		}
	})
}
