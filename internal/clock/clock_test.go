package clock

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestUntilNext(t *testing.T) {
	const period = 160 * time.Millisecond
	for offset, want := range map[time.Duration]time.Duration{
		0:                      period,
		time.Nanosecond:        period - time.Nanosecond,
		100 * time.Millisecond: 60 * time.Millisecond,
		150 * time.Millisecond: 170 * time.Millisecond, // a sixteenth is left
		149 * time.Millisecond: 11 * time.Millisecond,
		period - 1:             period + 1,
	} {
		if got := UntilNext(time.Unix(1600, 0).Add(offset), period); got != want {
			t.Errorf("%v after a multiple: wait %v, want %v", offset, got, want)
		}
	}
}

// TestTimersCoincide: timers that were made at different times, one with a multiple of the other's period, go off at the
// same instants.
func TestTimersCoincide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instants := map[int64]bool{}
		short := NewTimer(100 * time.Millisecond)
		defer short.Stop()
		<-time.After(33 * time.Millisecond)
		long := NewTimer(300 * time.Millisecond)
		defer long.Stop()
		for n := 0; n < 40; n++ { // 30 of the one and 10 of the other
			select {
			case <-short.C:
				short.Again()
			case <-long.C:
				long.Again()
			}
			instants[time.Now().UnixNano()] = true
		}
		if len(instants) > 31 {
			t.Errorf("%d instants of 40 ticks, want 30", len(instants))
		}
	})
}
