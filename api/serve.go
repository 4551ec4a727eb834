package api

import (
	"context"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc"
)

// Serve answers on l, which it closes, until ctx ends. Then it lets requests that run finish for as long as patience,
// ends them, and returns nil. Another error means that the listener failed.
func Serve(ctx context.Context, server *grpc.Server, l net.Listener, patience time.Duration) error {
	done := make(chan error, 1) // one value, by the goroutine below
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		if errors.Is(err, grpc.ErrServerStopped) {
			err = nil
		}
		return err
	case <-ctx.Done():
		Drain(server, patience)
		_ = <-done // it has ended because it was told to
		return nil
	}
}

// Drain stops a server: requests that run may finish for as long as patience, and are ended then.
func Drain(server *grpc.Server, patience time.Duration) {
	cut := time.AfterFunc(patience, server.Stop) // ends the contexts of running requests, and GracefulStop with them
	defer cut.Stop()
	server.GracefulStop()
}
