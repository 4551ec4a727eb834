package segment

import (
	"testing"
	"time"
)

// TestLatencies: a hundredth of the durations lies at or above what p99 says, but for the width of a class.
func TestLatencies(t *testing.T) {
	var c latencies
	if got := c.p99(); got != 0 {
		t.Errorf("nothing: %v", got)
	}
	for i := range 1000 {
		c.add(time.Duration(i+1) * time.Microsecond)
	}
	if got := c.p99(); got < 990*time.Microsecond || got > 1250*time.Microsecond {
		t.Errorf("1 to 1000 us: %v", got)
	}
	for _, d := range []time.Duration{-1, 0, 1, 7, time.Microsecond, time.Millisecond + 1, time.Hour, 1<<63 - 1} {
		c = latencies{}
		c.add(d)
		if got := c.p99(); d < 1<<61 && (got < d || float64(got) > 1.26*float64(max(d, 4))) {
			t.Errorf("%v: %v", d, got)
		}
	}
}
