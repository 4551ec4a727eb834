package diskio

import (
	"testing"
	"testing/synctest"
	"time"
)

// A disk is stalled since the oldest read that waits began, or since it answered another.
func TestStalledReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o outstanding
		stalled := func(want time.Duration, any bool) {
			t.Helper()
			since, ok := o.stalled()
			if ok != any || ok && time.Since(since) != want {
				t.Errorf("stalled %v for %v, want %v for %v", ok, time.Since(since), any, want)
			}
		}
		stalled(0, false)
		a := o.begin()
		time.Sleep(time.Second)
		b, c := o.begin(), o.begin()
		time.Sleep(time.Second)
		stalled(2*time.Second, true)
		o.end(b) // from the middle
		stalled(0, true)
		time.Sleep(time.Second)
		stalled(time.Second, true)
		o.end(a) // the first
		d := o.begin()
		time.Sleep(time.Second)
		stalled(time.Second, true)
		o.end(d) // the last
		o.end(c)
		stalled(0, false)
		time.Sleep(time.Hour)
		_ = o.begin()
		time.Sleep(time.Second)
		stalled(time.Second, true)
	})
}
