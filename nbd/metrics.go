package nbd

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/storaged/storaged/nbd/internal/wire"
)

// commandNames are the values of the label "operation". DISC has no reply: its place counts commands that nobody knows.
var commandNames = [wire.CmdEnd]string{wire.CmdRead: "read", wire.CmdWrite: "write", wire.CmdDisc: "unknown", wire.CmdFlush: "flush",
	wire.CmdTrim: "trim", wire.CmdCache: "cache", wire.CmdWriteZeroes: "write_zeroes", wire.CmdBlockStatus: "block_status",
	wire.CmdResize: "resize"}

// metrics are those of one Server. Without a registerer they count for nobody.
type metrics struct {
	connections *prometheus.CounterVec
	open        prometheus.Gauge
	handshakes  prometheus.Counter
	bytesNow    prometheus.Gauge
	batch       prometheus.Histogram

	requestsNow prometheus.Gauge
	requests    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	errors      *prometheus.CounterVec
	latency     *prometheus.HistogramVec

	ops [wire.CmdEnd]opMetrics
}

// opMetrics are the series of one command. There are none by export: the volumes behind have theirs.
type opMetrics struct {
	requests, bytes, errors prometheus.Counter
	latency                 prometheus.Observer
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	labels := []string{"operation"}
	m := &metrics{
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_nbd_connections_total",
			Help: "NBD connections by how they ended: disconnect (the client said so), closed, refused, error, " +
				"stalled, drained. Worry when error or stalled grow while no client was killed."}, []string{"end"}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "storage_nbd_connections",
			Help: "NBD connections open now. Worry near the configured maximum: more are refused."}),
		handshakes: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_nbd_handshake_failures_total",
			Help: "NBD connections that ended before they served an export, by error or time-out. Worry when it " +
				"grows: a port scan, or clients with wrong settings."}),
		bytesNow: prometheus.NewGauge(prometheus.GaugeOpts{Name: "storage_nbd_inflight_bytes",
			Help: "Payload buffers of NBD requests in flight, of this server. Worry when it is hundreds of megabytes " +
				"and does not move: clients do not take their replies, or volumes are stuck, and large requests wait."}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "storage_nbd_reply_batch_requests",
			Help: "NBD replies sent with one system call.", Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128}}),
		requestsNow: prometheus.NewGauge(prometheus.GaugeOpts{Name: "storage_nbd_inflight_requests",
			Help: "NBD requests read and not answered. Worry when it is high and does not move."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_nbd_requests_total",
			Help: "NBD requests answered, with or without error."}, labels),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_nbd_bytes_total",
			Help: "Bytes that successful NBD requests read, wrote, zeroed or discarded."}, labels),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "storage_nbd_errors_total",
			Help: "NBD requests answered with an error. Worry at any: the client's file system sees it."}, labels),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "storage_nbd_request_duration_seconds",
			Help: "Time from reading an NBD request to having its reply. Worry when the tail nears the client's " +
				"time-out (30 s by default).",
			Buckets: []float64{.00005, .0001, .0002, .0004, .0008, .0016, .0032, .0064, .0128, .05, .2, 1, 5, 20}},
			labels),
	}
	for cmd, name := range commandNames {
		m.ops[cmd] = opMetrics{requests: m.requests.WithLabelValues(name), bytes: m.bytes.WithLabelValues(name),
			errors: m.errors.WithLabelValues(name), latency: m.latency.WithLabelValues(name)}
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connections, m.open, m.handshakes, m.bytesNow, m.batch, m.requestsNow,
		m.requests, m.bytes, m.errors, m.latency} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// observe counts one answered request.
func (m *metrics) observe(cmd uint16, length uint64, took time.Duration, failed bool) {
	if cmd >= wire.CmdEnd {
		cmd = wire.CmdDisc
	}
	op := &m.ops[cmd]
	op.requests.Inc()
	op.latency.Observe(took.Seconds())
	switch {
	case failed:
		op.errors.Inc()
	case cmd != wire.CmdResize:
		op.bytes.Add(float64(length))
	}
}
