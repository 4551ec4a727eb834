package server

import (
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/server/status"
)

// httpHandler serves metrics and probes.
func httpHandler(gatherer prometheus.Gatherer, v *status.View) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	v.RegisterProbes(mux)
	return mux
}

// pprofHandler serves the Go profiler, without the default mux.
func pprofHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// Bounds of what HTTP clients can take. A scrape builds its answer in memory, where it stays until the client has read it; more scrapes
// at once than two Prometheus servers and a person make are refused.
const (
	maxScrapes         = 4
	maxHTTPConnections = 256
	httpWriteTimeout   = 30 * time.Second
)

// newHTTPServer serves what is answered at once.
func newHTTPServer(h http.Handler) *http.Server {
	s := newProfileServer(h)
	s.WriteTimeout = httpWriteTimeout
	return s
}

// newProfileServer serves what takes as long as was asked for.
func newProfileServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}

// newHTTPDoor bounds the connections of all listeners that speak HTTP: a quarter of them for one address.
func newHTTPDoor(connections int, refusals *doors.Refusals, metrics prometheus.Registerer) (doors.Door, error) {
	closed := prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_http_refused_connections_total",
		Help: "Connections for metrics, health and the profiler closed at once, because there were too many, in all or of their address. Worry when it grows."})
	if err := metrics.Register(closed); err != nil {
		return doors.Door{}, storage.E("register", storage.KindInternal, "metrics of http", err)
	}
	note := refusals.Port("HTTP", connections)
	return doors.Door{Shares: doors.NewShares(connections, max(2, connections/4)), Refused: func(from net.Addr) { closed.Inc(); note(from) }}, nil
}
