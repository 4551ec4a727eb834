package server

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/server/status"
)

// slowGatherer keeps every scrape until it is told to go on.
type slowGatherer struct {
	begun   chan struct{}
	release chan struct{}
}

func (g slowGatherer) Gather() ([]*dto.MetricFamily, error) {
	g.begun <- struct{}{}
	<-g.release
	return nil, nil
}

func serveHTTP(t *testing.T, g prometheus.Gatherer) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	door, err := newHTTPDoor(maxHTTPConnections, doors.NewRefusals(slog.New(slog.DiscardHandler)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s := newHTTPServer(httpHandler(g, &status.View{}))
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(door.Limit(l)) })
	t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// Scrapes are bounded: more of them at a time are refused at once. Line: MaxRequestsInFlight.
func TestScrapesAreBounded(t *testing.T) {
	g := slowGatherer{begun: make(chan struct{}, 100), release: make(chan struct{})}
	address := serveHTTP(t, g)
	scrape := func() int {
		r, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			t.Error(err)
			return 0
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		return r.StatusCode
	}
	var wg sync.WaitGroup
	for range maxScrapes {
		wg.Go(func() {
			if code := scrape(); code != http.StatusOK {
				t.Errorf("a scrape: %d", code)
			}
		})
		<-g.begun
	}
	refused := make(chan int, 1)
	go func() { refused <- scrape() }()
	select {
	case code := <-refused:
		if code != http.StatusServiceUnavailable {
			t.Errorf("one more: %d", code)
		}
	case <-g.begun:
		t.Error("one more is begun")
	case <-time.After(10 * time.Second):
		t.Error("one more is not answered")
	}
	close(g.release)
	wg.Wait()
}

// Connections are bounded for each address, and what is over the bound is closed at once. Line: doors.Door.Limit.
func TestHTTPConnectionsAreBounded(t *testing.T) {
	address := serveHTTP(t, prometheus.NewRegistry())
	for range maxHTTPConnections / 4 {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
	}
	over, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	_ = over.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := over.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more: %v, want it closed", err)
	}
}
