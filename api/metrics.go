package api

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/registry"
)

// metrics of a Server.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	closed   prometheus.Counter
}

// newMetrics returns metrics that registerer shows; nil: nobody does.
func newMetrics(registerer prometheus.Registerer) (m metrics, err error) {
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_api_requests_total",
		Help: "Requests of the gRPC interface by method and outcome. Worry when 'internal error' grows at all, or " +
			"'unavailable' for longer than a failover takes."}, []string{"method", "outcome"})
	m.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "storage_api_request_seconds",
		Help:    "Time from the arrival of a request to its answer. Worry when lists take seconds.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}, []string{"method"})
	m.closed = prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_api_refused_connections_total",
		Help: "Connections of the gRPC interface closed at once, because there were too many, in all or of their address. Worry when it grows."})
	if _, err = registry.Register(registerer, m.requests, m.seconds, m.closed); err != nil {
		err = storage.E("register metrics", storage.KindInternal, "api", err)
	}
	return m, err
}

// observe counts one request. Only registered methods get here, so the labels are bounded.
func (m *metrics) observe(method string, err error, took time.Duration) {
	method = strings.TrimPrefix(method, "/")
	m.requests.WithLabelValues(method, storage.KindOf(err).String()).Inc()
	m.seconds.WithLabelValues(method).Observe(took.Seconds())
}
