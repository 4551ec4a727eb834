package hostgateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// A port that somebody else has is no reason for a gateway to end: metrics come when it is free. The line is the loop in serveHTTP.
func TestMetricsWait(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := newTestGateway(t, &fakeDriver{})
	g.config.ListenHTTP = taken.Addr().String()
	failed := make(chan struct{}, 1)
	g.env.logger = slog.New(slog.NewTextHandler(signal(failed), nil))
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan struct{}, 1)
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} })}
	ports, err := sharePorts(g.env.logger)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { g.serveHTTP(ctx, server, ports.http) })
	defer func() {
		cancel()
		_ = server.Close()
		wg.Wait()
	}()
	<-failed
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if resp, err := http.Get("http://" + g.config.ListenHTTP); err == nil {
			_ = resp.Body.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	<-asked
}

// signal is a writer that says that it was written to.
type signal chan struct{}

func (s signal) Write(p []byte) (int, error) {
	select {
	case s <- struct{}{}:
	default:
	}
	return len(p), nil
}
