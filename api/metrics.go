package api

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// metrics of a Server; the zero value counts nothing.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	closed   prometheus.Counter
}

func (m *metrics) register(registerer prometheus.Registerer) error {
	if registerer == nil {
		return nil
	}
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_api_requests_total",
		Help: "Requests of the gRPC interface by method and outcome. Worry when 'internal error' grows at all, or " +
			"'unavailable' for longer than a failover takes."}, []string{"method", "outcome"})
	m.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "storage_api_request_seconds",
		Help:    "Time from the arrival of a request to its answer. Worry when lists take seconds.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}, []string{"method"})
	m.closed = prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_api_refused_connections_total",
		Help: "Connections of the gRPC interface closed at once, because there were too many, in all or of their address. Worry when it grows."})
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.closed} {
		if err := registerer.Register(c); err != nil {
			return storage.E("register metrics", storage.KindInternal, "api", err)
		}
	}
	return nil
}

// refused counts a connection that was closed at once.
func (m *metrics) refused() {
	if m.closed != nil {
		m.closed.Inc()
	}
}

// observe counts one request. Only registered methods get here, so the labels are bounded.
func (m *metrics) observe(method string, err error, took time.Duration) {
	if m.requests == nil {
		return
	}
	method = strings.TrimPrefix(method, "/")
	m.requests.WithLabelValues(method, storage.KindOf(err).String()).Inc()
	m.seconds.WithLabelValues(method).Observe(took.Seconds())
}
