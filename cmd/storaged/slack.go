package main

import "golang.org/x/sys/unix"

const (
	// timerSlackNS is how late, in nanoseconds, the kernel may end a wait, so that it can end several at once
	// (PR_SET_TIMERSLACK in prctl(2); the kernel's default is 50 us). Nothing in a node counts in less than some
	// milliseconds, and what it waits for on the way of a request are events, not times.
	timerSlackNS = 1_000_000

	// slackSet is in the environment of a process that has begun anew with another slack.
	slackSet = "_STORAGED_TIMER_SLACK"
)

// relaxTimers begins the program anew with a larger timer slack; it returns if that is done already, or cannot be.
//
// Go's monitor thread sleeps 20 us at a time while anything goes on in the process, for a millisecond after each time
// that the process was idle at least. In a node, where something arrives or becomes durable all the time, and which
// waits in between, these were four of ten context switches, idle or busy. The monitor runs before any code of a
// program does, and only the kernel's slack reaches it: a thread has that of the thread that made it, the first that of
// the program which was replaced by this one.
func relaxTimers() {
	beginAnew(slackSet, func() (undo func(), ok bool) {
		before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		if err != nil || before == 0 || before >= timerSlackNS { // 0: real-time scheduling, which knows no slack
			return nil, false
		}
		undo = func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0) }
		return undo, unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlackNS, 0, 0, 0) == nil
	})
}
