package chaos

import (
	"testing"
	"time"
)

func TestCalm(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	for name, c := range map[string]struct {
		faults, waits []span
		want          float64
		from          float64
	}{
		"nothing":                 {},
		"no fault":                {waits: []span{{at(1), at(2)}}, want: 1, from: 1},
		"all of it under a fault": {faults: []span{{at(1), at(5)}}, waits: []span{{at(2), at(4)}}},
		"after the fault":         {faults: []span{{at(1), at(5)}}, waits: []span{{at(2), at(7)}}, want: 2, from: 5},
		"before the fault":        {faults: []span{{at(4), at(5)}}, waits: []span{{at(1), at(5)}}, want: 3, from: 1},
		"between two":             {faults: []span{{at(1), at(2)}, {at(5), at(6)}}, waits: []span{{at(1.5), at(7)}}, want: 3, from: 2},
		"the longest of several":  {waits: []span{{at(1), at(2)}, {at(3), at(6)}, {at(8), at(9)}}, want: 3, from: 3},
	} {
		t.Run(name, func(t *testing.T) {
			got, from := (&calm{faults: c.faults, waits: c.waits}).longest()
			if got.Seconds() != c.want || c.want > 0 && !from.Equal(at(c.from)) {
				t.Errorf("%v from %v, want %v s from %v s", got, from, c.want, c.from)
			}
		})
	}
}
