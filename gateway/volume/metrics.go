package volume

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

var (
	errGatewayClosed = errors.New("the gateway is closed")
	errIncomplete    = errors.New("the catalog's answer is incomplete")
	errTwoTerms      = errors.New("it is to be used under an attachment, which has an access mode of its own, and another access mode is given; leave one out")
)

// maxLatencyVolumes bounds the volumes whose latencies are kept apart, whatever Config.LatencyOf asks for.
const maxLatencyVolumes = 32

// metrics are the gateway's. A volume has SeriesPerVolume series while it is open, and no histograms unless the
// configuration asks for them. Hundreds of volumes are ordinary, and a histogram for each of their operations would be most
// of a node's metrics. Figures that are useful for all volumes together have no label for the volume. A volume's series are
// removed when it is closed, and begin at zero when it is opened again, which rate() handles as a reset.
type metrics struct {
	// by volume
	requests, bytes, seconds, errors, throttledSeconds *prometheus.CounterVec
	inFlight                                           *prometheus.GaugeVec
	// by volume, of those that are asked for
	latency *prometheus.HistogramVec
	// of all together
	kinds, retries, rotations    *prometheus.CounterVec
	all                          *prometheus.HistogramVec
	sessions, orphans, throttled prometheus.Counter
	inFlightBytes, waiting       prometheus.Gauge

	logger    *slog.Logger
	latencyOf []string // patterns

	mu      sync.Mutex
	apart   map[string]bool // guarded by mu: volumes whose latencies are kept apart
	refused bool            // guarded by mu: there was no room for one more
}

// SeriesPerVolume is how many series an open volume has in the metrics; one that Config.LatencyOf names has two histograms
// more.
const SeriesPerVolume = 10

func newMetrics(c *Config) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_volume_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "storage_volume_" + name, Help: help})
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "storage_volume_" + name, Help: help,
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18)}, labels) // 50 us to 6.5 s
	}
	m := &metrics{logger: c.Logger, latencyOf: c.LatencyOf, apart: map[string]bool{},
		requests:         counter("requests_total", "Requests that hosts made, finished in whatever way: read, write, and other (discards, zeroes, flushes, questions).", "volume", "operation"),
		bytes:            counter("bytes_total", "Bytes of reads and writes that succeeded.", "volume", "operation"),
		seconds:          counter("request_seconds_total", "Time from a host's request to its answer, summed up over all reads or writes. Its rate, divided by that of the requests, is how long one takes on average.", "volume", "operation"),
		errors:           counter("errors_total", "Requests that failed, unless their caller had gone. Worry at any; storage_volume_errors_by_kind_total says of which kind, the log more.", "volume"),
		throttledSeconds: counter("throttled_seconds_total", "Time that requests waited for the volume's limits, summed up over all of them. Its rate is how many wait on average; when that is never 0, the users want more than they may have.", "volume"),
		inFlight:         prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "storage_volume_in_flight_requests", Help: "Requests not answered yet."}, []string{"volume"}),
		latency:          histogram("latency_seconds", "Time from a host's request to its answer, of the volumes that --volume-latency names.", "volume", "operation"),
		kinds:            counter("errors_by_kind_total", "Requests that failed, of all volumes, by kind of error. Worry about anything but canceled.", "operation", "kind"),
		retries:          counter("retries_total", "Attempts that were repeated, by kind of error. A burst goes with a change of leader; worry when it does not end.", "kind"),
		rotations:        counter("session_rotations_total", "Sessions closed, by reason. Worry about fenced and orphans when no node and no client has failed.", "reason"),
		all:              histogram("request_seconds", "Time from a host's request to its answer, of all volumes. Worry when writes take much longer than a disk's sync.", "operation"),
		sessions:         prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_volume_sessions_total", Help: "Sessions opened in every group of a volume."}),
		orphans:          prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_volume_orphans_total", Help: "Mutations whose caller left before they were answered."}),
		throttled: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_volume_throttled_requests_total",
			Help: "Requests that had to wait for their volume's limits before they began."}),
		inFlightBytes: gauge("in_flight_bytes", "Bytes in flight to groups; at most the configured bound."),
		waiting:       gauge("throttled_waiting_requests", "Requests that wait for their volume's limits now."),
	}
	if c.Metrics == nil {
		return m, nil
	}
	for _, collector := range []prometheus.Collector{m.requests, m.bytes, m.seconds, m.errors, m.throttledSeconds, m.inFlight, m.latency, m.kinds,
		m.retries, m.rotations, m.all, m.sessions, m.orphans, m.throttled, m.inFlightBytes, m.waiting} {
		if err := c.Metrics.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// forget removes a volume's series.
func (m *metrics) forget(volume string) {
	labels := prometheus.Labels{"volume": volume}
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{m.requests, m.bytes, m.seconds, m.errors, m.throttledSeconds,
		m.inFlight, m.latency} {
		v.DeletePartialMatch(labels)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.apart, volume)
}

// ParsePatterns reads what Config.LatencyOf is made of: names or patterns, separated by commas.
func ParsePatterns(list string) (patterns []string, err error) {
	for _, p := range strings.Split(list, ",") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		if _, err := path.Match(p, ""); err != nil {
			return nil, storage.E("read", storage.KindInvalid, "volume-latency", fmt.Errorf("%q is no pattern: use names, * and ?, for example db-*", p))
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// keepApart reports whether the volume's latencies are kept apart from those of others.
func (m *metrics) keepApart(volume string) bool {
	wanted := slices.ContainsFunc(m.latencyOf, func(pattern string) bool {
		ok, err := path.Match(pattern, volume)
		return ok && err == nil
	})
	if !wanted {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.apart[volume] && len(m.apart) >= maxLatencyVolumes {
		if !m.refused {
			m.logger.Warn("more volumes are asked for latencies of their own than are kept; name fewer in --volume-latency", "volume", volume,
				"kept", maxLatencyVolumes)
		}
		m.refused = true
		return false
	}
	m.apart[volume] = true
	return true
}

// volumeMetrics are the series of one volume, looked up once.
type volumeMetrics struct {
	all                                       *metrics
	read, write, zero, discard, flush, status operationMetrics
	throttledSeconds                          prometheus.Counter
}

// operationMetrics are the series that one operation on one volume counts into.
type operationMetrics struct {
	all              *metrics
	operation        string
	requests, errors prometheus.Counter
	bytes, seconds   prometheus.Counter  // nil: not counted
	latency          prometheus.Observer // nil: not asked for
	histogram        prometheus.Observer // of all volumes
	inFlight         prometheus.Gauge
}

func (m *metrics) of(volume string) *volumeMetrics {
	apart := m.keepApart(volume)
	operation := func(name, counted string) operationMetrics {
		o := operationMetrics{all: m, operation: name, requests: m.requests.WithLabelValues(volume, counted), errors: m.errors.WithLabelValues(volume),
			histogram: m.all.WithLabelValues(name), inFlight: m.inFlight.WithLabelValues(volume)}
		if name == counted {
			o.bytes, o.seconds = m.bytes.WithLabelValues(volume, name), m.seconds.WithLabelValues(volume, name)
			if apart {
				o.latency = m.latency.WithLabelValues(volume, name)
			}
		}
		return o
	}
	return &volumeMetrics{all: m, read: operation("read", "read"), write: operation("write", "write"), zero: operation("write_zeroes", "other"),
		discard: operation("discard", "other"), flush: operation("flush", "other"), status: operation("status", "other"),
		throttledSeconds: m.throttledSeconds.WithLabelValues(volume)}
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
	took := time.Since(start).Seconds()
	if o.seconds != nil {
		o.seconds.Add(took)
	}
	if *err != nil {
		kind := storage.KindOf(*err)
		o.all.kinds.WithLabelValues(o.operation, kind.String()).Inc()
		if kind != storage.KindCanceled {
			o.errors.Inc()
		}
		return
	}
	if o.bytes != nil {
		o.bytes.Add(float64(n))
	}
	o.histogram.Observe(took)
	if o.latency != nil {
		o.latency.Observe(took)
	}
}

func (m *volumeMetrics) retry(k storage.Kind)    { m.all.retries.WithLabelValues(k.String()).Inc() }
func (m *volumeMetrics) rotations(reason string) { m.all.rotations.WithLabelValues(reason).Inc() }
