package server

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/storaged/storaged/internal/doors"
)

// problem is one reason why a node is not healthy or not ready.
type problem struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

// httpHandler serves metrics and health. healthy says what is broken for good (restart or repair this node), ready
// what keeps this node from serving now, warnings what is wrong though neither a restart nor another node's service
// would mend it: /healthz tells it and stays ok. /livez says that the process answers, and no more.
func httpHandler(gatherer prometheus.Gatherer, healthy, ready, warnings func() []problem) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { writeProblems(w, nil, nil) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeProblems(w, healthy(), warnings()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { writeProblems(w, ready(), nil) })
	return mux
}

func writeProblems(w http.ResponseWriter, problems, warnings []problem) {
	w.Header().Set("Content-Type", "application/json")
	if len(problems) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(struct {
		OK       bool      `json:"ok"`
		Problems []problem `json:"problems,omitempty"`
		Warnings []problem `json:"warnings,omitempty"`
	}{len(problems) == 0, problems, warnings}) // the client has gone if this fails
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

// Bounds of what HTTP clients can take. A scrape builds its answer in memory, and a client that does not read it keeps it
// there; more scrapes than a pair of Prometheus servers and a person make are told to come again.
const (
	maxScrapes                = 4
	maxHTTPConnections        = 256
	maxHTTPConnectionsAddress = 64
	httpWriteTimeout          = 30 * time.Second
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

// limitHTTP bounds the connections of a listener.
func limitHTTP(l net.Listener) net.Listener {
	return doors.Limit(l, doors.NewShares(maxHTTPConnections, maxHTTPConnectionsAddress), nil)
}
