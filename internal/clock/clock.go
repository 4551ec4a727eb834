// Package clock says when periodic work is done next, so that a process wakes once for all of it.
//
// Every wake-up of an idle process costs far more than what it does then. So periodic work happens at multiples of its period
// on the wall clock: tasks of one period coincide, and so do tasks of multiples of it. Where clocks are set by the network, the
// tasks of several nodes coincide too, which saves the wake-ups by each other's messages. Nothing may depend on nodes
// agreeing about the time, or on a step of the wall clock: a wait is never longer than 17/16 of the period.
//
// It has no state, and works on virtual time.
package clock

import "time"

// UntilNext returns how long to wait, at now, for the next multiple of period on the wall clock: more than 1/16 of the
// period and at most 17/16, so that a timer that was early by a little does not go off twice.
func UntilNext(now time.Time, period time.Duration) time.Duration {
	d := period - time.Duration(now.UnixNano()%int64(period))
	if d <= period/16 {
		d += period
	}
	return d
}

// Timer goes off at multiples of a period on the wall clock, once for every call of Again. It is used by one goroutine.
type Timer struct {
	*time.Timer
	period time.Duration
}

// NewTimer returns a Timer that goes off at the next multiple. Stop ends it.
func NewTimer(period time.Duration) *Timer {
	return &Timer{time.NewTimer(UntilNext(time.Now(), period)), period}
}

// Again sets the Timer to the next multiple of its period.
func (t *Timer) Again() { t.Reset(UntilNext(time.Now(), t.period)) }
