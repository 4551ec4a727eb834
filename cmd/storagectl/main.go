// Command storagectl is how people and scripts look at and change a storaged cluster.
//
// It speaks to any node: gRPC (package api/client) for what the cluster knows, NBD for the bytes of a volume. It keeps no
// state and decides nothing that the cluster could decide. One file holds one noun; everything that a command touches
// besides its arguments (streams, environment, clock, network) comes from the struct app, so that tests run whole
// commands in this process.
//
// docs/storagectl.md and the manual pages are written from the commands' own help by "go generate".
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

//go:generate go run . docs markdown ../../docs/storagectl.md

func main() {
	os.Exit(runSignals())
}

// runSignals ends the context at the first interrupt; a second one ends the process the hard way.
func runSignals() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// run carries one command line out and returns the exit code. When ctx ends it returns soon.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return newApp(stdin, stdout, stderr).run(ctx, args)
}
