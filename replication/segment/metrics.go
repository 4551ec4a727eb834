package segment

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/storaged/storaged/internal/registry"
)

// metrics of one log. They work without a registry.
type metrics struct {
	records    prometheus.Counter
	bytes      prometheus.Counter
	direct     prometheus.Counter
	batch      prometheus.Histogram
	write      prometheus.Histogram
	sync       prometheus.Histogram
	prepared   prometheus.Counter
	failed     prometheus.Gauge
	unregister func()
}

func newMetrics(l *Log) (*metrics, error) {
	latency := prometheus.ExponentialBuckets(20e-6, 2, 18) // 20 us to 2.6 s
	m := &metrics{
		records: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_segment_append_records_total",
			Help: "Records made durable."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_segment_append_bytes_total",
			Help: "Bytes of records made durable, with headers and padding."}),
		direct: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_segment_direct_bytes_total",
			Help: "Bytes of pages written around the page cache, for followers. Worry when it stays 0 under writes, and the file system is no tmpfs: each then costs a copy."}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "storage_segment_batch_records",
			Help:    "Records per sync. Values near one under load mean that group commit does not happen.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12)}),
		write: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "storage_segment_write_seconds",
			Help: "Duration of a batch's write. Worry when it nears that of the sync.", Buckets: latency}),
		sync: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "storage_segment_sync_seconds",
			Help: "Duration of a batch's sync; every write waits for one. A follower's small batches are written and synced in one. Worry above 0.1.", Buckets: latency}),
		prepared: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_segment_prepared_total",
			Help: "Segments made ready for use, new or recycled."}),
		failed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "storage_segment_failed",
			Help: "1 when the disk has failed for good; replace it or restart the process."}),
	}
	used := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_segment_used_bytes",
		Help: "Size of the segments that hold records."}, func() float64 { u, _ := l.Space(); return float64(u) })
	free := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_segment_free_bytes",
		Help: "Size of the segments that are ready or waiting for use. Worry when it stays 0 under load."},
		func() float64 { _, f := l.Space(); return float64(f) })
	cold := prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "storage_segment_cold_reads_total",
		Help: "Reads that the page cache could not answer and the disk had to."},
		func() float64 { return float64(l.disk.Cold()) })
	var err error
	m.unregister, err = registry.Register(l.cfg.Metrics, m.records, m.bytes, m.direct, m.batch, m.write, m.sync, m.prepared, m.failed, used, free, cold)
	return m, err
}
