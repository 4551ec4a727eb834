// Command pause is the first process of every pod in the lab: it holds the pod's namespaces and waits for its end.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGCHLD) // the kernel reaps orphans of the pod then
	<-stop
}
