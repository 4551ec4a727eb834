package main

import (
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// tracebackVariable is how an operator tells Go what a crash is to look like; what is said there holds.
const tracebackVariable = "GOTRACEBACK"

// crashBySignal has a panic, and a signal that asks for the stacks (SIGABRT of a watchdog, SIGQUIT), print the stacks of all
// goroutines and end this process by SIGABRT. By default Go exits with code 2. Here that code says that the operator must change
// something, and after it the units of deploy/systemd do not restart a program: a node would stay away, and a gateway's devices
// would wait for good. As by default, no core is left: a node's memory is its users' data.
func crashBySignal() {
	if _, said := os.LookupEnv(tracebackVariable); said {
		return
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return
	}
	core.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return // then rather the exit code than a core
	}
	debug.SetTraceback("crash")
}
