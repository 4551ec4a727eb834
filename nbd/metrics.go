package nbd

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// commandNames are the values of the label "operation".
var commandNames = [cmdEnd]string{cmdRead: "read", cmdWrite: "write", cmdDisc: "disconnect", cmdFlush: "flush",
	cmdTrim: "trim", cmdCache: "cache", cmdWriteZeroes: "write_zeroes", cmdBlockStatus: "block_status",
	cmdResize: "resize"}

func commandName(cmd uint16) string {
	if cmd < cmdEnd {
		return commandNames[cmd]
	}
	return "unknown"
}

// metrics are those of one Server. Without a registerer they count for nobody.
type metrics struct {
	connections *prometheus.CounterVec
	open        prometheus.Gauge
	handshakes  prometheus.Counter
	bytesNow    prometheus.Gauge
	batch       prometheus.Histogram

	requestsNow *prometheus.GaugeVec
	requests    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	errors      *prometheus.CounterVec
	latency     *prometheus.HistogramVec

	mu      sync.Mutex
	exports map[string]*exportMetrics // guarded by mu; those with a connection, and the maxIdleExports last ones
	idle    []string                  // guarded by mu; exports without a connection, oldest first
}

// maxIdleExports bounds the exports whose series are kept although nobody is connected, so that volumes that come
// and go do not add series for ever.
const maxIdleExports = 256

// exportMetrics are the series of one export, looked up once.
type exportMetrics struct {
	name        string
	users       int // guarded by metrics.mu
	requestsNow prometheus.Gauge
	all         *metrics
	ops         [cmdEnd]atomic.Pointer[opMetrics] // made at first use: few clients use all commands
}

type opMetrics struct {
	requests, bytes, errors prometheus.Counter
	latency                 prometheus.Observer
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	labels := []string{"export", "operation"}
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
		requestsNow: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "storage_nbd_inflight_requests",
			Help: "NBD requests read and not answered, by export. Worry when it is high and does not move."},
			labels[:1]),
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
		exports: make(map[string]*exportMetrics),
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

// acquire returns the series of an export for one connection.
func (m *metrics) acquire(name string) *exportMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.exports[name]
	if e == nil {
		e = &exportMetrics{name: name, requestsNow: m.requestsNow.WithLabelValues(name), all: m}
		m.exports[name] = e
	}
	if e.users == 0 {
		m.removeIdleLocked(name)
	}
	e.users++
	return e
}

// release gives the series back; they stay visible until maxIdleExports others were released.
func (m *metrics) release(e *exportMetrics) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.users--; e.users > 0 {
		return
	}
	m.idle = append(m.idle, e.name)
	if len(m.idle) <= maxIdleExports {
		return
	}
	oldest := m.idle[0]
	m.removeIdleLocked(oldest)
	delete(m.exports, oldest)
	labels := prometheus.Labels{"export": oldest}
	m.requestsNow.DeletePartialMatch(labels)
	m.requests.DeletePartialMatch(labels)
	m.bytes.DeletePartialMatch(labels)
	m.errors.DeletePartialMatch(labels)
	m.latency.DeletePartialMatch(labels)
}

func (m *metrics) removeIdleLocked(name string) {
	for i, idle := range m.idle {
		if idle == name {
			m.idle = append(m.idle[:i], m.idle[i+1:]...)
			return
		}
	}
}

// op returns the series of a command. DISC has no reply; its place counts commands that nobody knows.
func (e *exportMetrics) op(cmd uint16) *opMetrics {
	name := commandName(cmd)
	if cmd >= cmdEnd {
		cmd = cmdDisc
	}
	if op := e.ops[cmd].Load(); op != nil {
		return op
	}
	m := e.all
	op := &opMetrics{requests: m.requests.WithLabelValues(e.name, name), bytes: m.bytes.WithLabelValues(e.name, name),
		errors: m.errors.WithLabelValues(e.name, name), latency: m.latency.WithLabelValues(e.name, name)}
	e.ops[cmd].Store(op)
	return op
}

// observe counts one answered request.
func (e *exportMetrics) observe(cmd uint16, length uint64, took time.Duration, failed bool) {
	op := e.op(cmd)
	op.requests.Inc()
	op.latency.Observe(took.Seconds())
	switch {
	case failed:
		op.errors.Inc()
	case cmd != cmdResize:
		op.bytes.Add(float64(length))
	}
}
