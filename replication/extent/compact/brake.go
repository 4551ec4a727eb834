package compact

import "time"

// leastBrake is what work in the background is left with at least.
const leastBrake = 1.0 / 16

// Brake says which part of its rate work beside clients may take, by how long syncs of the disk take with it and without. The zero value
// does not brake. Its user's goroutine owns it.
type Brake struct {
	rest  time.Duration // latency while nothing is done, a moving average
	taken float64       // part of the rate that clients do not leave us, 0 to 1-leastBrake
	used  bool          // something was done since Feel
}

// Use says that something is done.
func (b *Brake) Use() { b.used = true }

// Part returns the part of the rate that clients leave, leastBrake to 1.
func (b *Brake) Part() float64 { return 1 - b.taken }

// Feel moves the brake, once a second: half as fast when syncs take half as long again as at rest, and a tenth of the rate more otherwise.
// A latency of 0 says that there were no syncs.
func (b *Brake) Feel(latency time.Duration) {
	switch {
	case latency == 0:
	case !b.used && b.rest == 0:
		b.rest = latency
	case !b.used:
		b.rest += (latency - b.rest) / 8
	case b.rest > 0 && latency > b.rest+b.rest/2:
		b.taken = 1 - max(leastBrake, b.Part()/2)
		b.used = false
		return
	}
	b.taken = max(0, b.taken-0.1)
	b.used = false
}
