package volume

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

var (
	errGatewayClosed = errors.New("the gateway is closed")
	errIncomplete    = errors.New("the catalog's answer is incomplete")
	errTwoTerms      = errors.New("it is to be used under an attachment, and to be attached as shared; one excludes the other")
)

// metrics are the gateway's, labelled by volume; a volume's are removed when it is closed.
type metrics struct {
	requests, bytes, errors, retries, rotations, sessions, orphans *prometheus.CounterVec
	seconds                                                        *prometheus.HistogramVec
	inFlight, inFlightBytes                                        *prometheus.GaugeVec
	throttled, throttledSeconds                                    *prometheus.CounterVec
	waiting                                                        *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_volume_" + name, Help: help}, append([]string{"volume"}, labels...))
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "storage_volume_" + name, Help: help}, append([]string{"volume"}, labels...))
	}
	m := &metrics{
		requests:  counter("requests_total", "Requests that hosts made, finished in whatever way.", "operation"),
		bytes:     counter("bytes_total", "Bytes of requests that succeeded.", "operation"),
		errors:    counter("errors_total", "Requests that failed, by kind of error. Worry about anything but canceled.", "operation", "kind"),
		retries:   counter("retries_total", "Attempts that were repeated, by kind of error. A burst goes with a change of leader; worry when it does not end.", "kind"),
		rotations: counter("session_rotations_total", "Sessions closed, by reason. Worry about fenced and orphans when no node and no client has failed.", "reason"),
		sessions:  counter("sessions_total", "Sessions opened in every group of the volume."),
		orphans:   counter("orphans_total", "Mutations whose caller left before they were answered."),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "storage_volume_request_seconds",
			Help:    "Time from a host's request to its answer. Worry when writes take much longer than a disk's sync.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18), // 50 us to 6.5 s
		}, []string{"volume", "operation"}),
		inFlight:         gauge("in_flight_requests", "Requests not answered yet.", "operation"),
		inFlightBytes:    gauge("in_flight_bytes", "Bytes in flight to groups; at most the configured bound."),
		throttled:        counter("throttled_requests_total", "Requests that had to wait for the volume's limits before they began."),
		throttledSeconds: counter("throttled_seconds_total", "Time that requests waited for the volume's limits, summed up over all of them. Its rate is how many wait on average; when that is never 0, the users want more than they may have."),
		waiting:          gauge("throttled_waiting_requests", "Requests that wait for the volume's limits now."),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range m.collectors() {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.bytes, m.errors, m.retries, m.rotations, m.sessions, m.orphans, m.seconds, m.inFlight, m.inFlightBytes,
		m.throttled, m.throttledSeconds, m.waiting}
}

// forget removes a volume's series.
func (m *metrics) forget(volume string) {
	labels := prometheus.Labels{"volume": volume}
	for _, c := range m.collectors() {
		if v, ok := c.(interface{ DeletePartialMatch(prometheus.Labels) int }); ok {
			v.DeletePartialMatch(labels)
		}
	}
}

// volumeMetrics are the series of one volume, looked up once.
type volumeMetrics struct {
	all                                       *metrics
	volume                                    string
	read, write, zero, discard, flush, status operationMetrics
	sessions, orphans                         prometheus.Counter
	inFlightBytes                             prometheus.Gauge
	throttled, throttledSeconds               prometheus.Counter
	waiting                                   prometheus.Gauge
}

// operationMetrics are the series of one operation on one volume.
type operationMetrics struct {
	all             *metrics
	volume          string
	operation       string
	requests, bytes prometheus.Counter
	seconds         prometheus.Observer
	inFlight        prometheus.Gauge
}

func (m *metrics) of(volume string) *volumeMetrics {
	operation := func(name string) operationMetrics {
		return operationMetrics{
			all: m, volume: volume, operation: name,
			requests: m.requests.WithLabelValues(volume, name),
			bytes:    m.bytes.WithLabelValues(volume, name),
			seconds:  m.seconds.WithLabelValues(volume, name),
			inFlight: m.inFlight.WithLabelValues(volume, name),
		}
	}
	return &volumeMetrics{
		all: m, volume: volume,
		read: operation("read"), write: operation("write"), zero: operation("write_zeroes"), discard: operation("discard"),
		flush: operation("flush"), status: operation("status"),
		sessions: m.sessions.WithLabelValues(volume), orphans: m.orphans.WithLabelValues(volume),
		inFlightBytes: m.inFlightBytes.WithLabelValues(volume),
		throttled:     m.throttled.WithLabelValues(volume), throttledSeconds: m.throttledSeconds.WithLabelValues(volume),
		waiting: m.waiting.WithLabelValues(volume),
	}
}

// begin counts a request that starts; the time it returns goes to end.
func (o *operationMetrics) begin() time.Time {
	o.inFlight.Inc()
	return time.Now()
}

// end counts a request of n bytes that began at start and ended with *err.
func (o *operationMetrics) end(start time.Time, n int64, err *error) {
	o.inFlight.Dec()
	o.requests.Inc()
	if *err != nil {
		o.all.errors.WithLabelValues(o.volume, o.operation, storage.KindOf(*err).String()).Inc()
		return
	}
	o.bytes.Add(float64(n))
	o.seconds.Observe(time.Since(start).Seconds())
}

func (m *volumeMetrics) retry(k storage.Kind) {
	m.all.retries.WithLabelValues(m.volume, k.String()).Inc()
}
func (m *volumeMetrics) rotations(reason string) {
	m.all.rotations.WithLabelValues(m.volume, reason).Inc()
}
