package main

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// flusherSet is in the environment of a process that has begun anew as one that others' writes wait for.
const flusherSet = "_STORAGED_IO_FLUSHER"

// serveWrites begins the program anew as one that the kernel's own writing waits for (PR_SET_IO_FLUSHER in prctl(2)): when it
// needs memory, the kernel must not wait for dirty pages to be written, because they may be those of its own devices. The
// keeper and the helpers inherit it. It returns if that is done already, or cannot be: it takes CAP_SYS_RESOURCE and Linux 5.6.
//
// The kernel keeps it for each thread, and Go has several before any code of a program runs; a thread has what the one that
// made it had, the first what the program had that was replaced by this one.
func serveWrites() {
	beginAnew(flusherSet, func() (undo func(), ok bool) {
		undo = func() { _ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0) }
		return undo, unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) == nil
	})
}

// beginAnew has the program replaced by itself, once, in a process that set has changed. It returns in the new one, which mark in its
// environment tells, and where it cannot be done.
func beginAnew(mark string, set func() (undo func(), ok bool)) {
	if os.Getenv(mark) != "" {
		_ = os.Unsetenv(mark)
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	program, err := os.Executable()
	if err != nil {
		return
	}
	if undo, ok := set(); ok {
		_ = syscall.Exec(program, os.Args, append(os.Environ(), mark+"=1")) // returns only if it failed
		undo()
	}
}
