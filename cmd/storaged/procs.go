package main

import (
	"os"
	"runtime"
)

// kernelShareUpTo is the number of cores up to which one of them is left to the kernel.
const kernelShareUpTo = 4

// leaveKernelShare lets Go run on all cores but one if the machine, or the container's limit, has two to four, unless
// GOMAXPROCS says what to use. About half the work of a storage node is the kernel's: network, disk, the workers that
// sync. A second processor for Go on two cores only takes turns with that, and wakes and stops threads to do it: on a
// machine with two cores a replicated write cost a fifth more CPU, and random reads were a third slower.
func leaveKernelShare() {
	if n := processors(runtime.GOMAXPROCS(0), os.Getenv("GOMAXPROCS")); n > 0 {
		runtime.GOMAXPROCS(n)
	}
}

// processors is what GOMAXPROCS is to be set to; 0: leave it.
func processors(cores int, asked string) int {
	if asked != "" || cores < 2 || cores > kernelShareUpTo {
		return 0
	}
	return cores - 1
}
