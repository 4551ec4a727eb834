package extent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/registry"
	"github.com/storaged/storaged/replication/extent/storedir"
)

// metrics are those of one store; all methods may be called on metrics that are not registered anywhere.
type metrics struct {
	checkpoints prometheus.Histogram
	pages       prometheus.Counter
	corrupt     prometheus.Counter
	mended      prometheus.Counter
	unregister  func()
}

func newMetrics(r prometheus.Registerer, id storage.StoreID, files *storedir.FS, pulls func() int, staged func() int64) (*metrics, error) {
	labels := prometheus.Labels{"store": id.String()}
	m := &metrics{
		checkpoints: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "storage_extent_checkpoint_seconds", ConstLabels: labels,
			Help:    "Time to write a group's checkpoint, the wait for its log included. Worry when it nears the time between checkpoints.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		pages: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_extent_checkpoint_pages_total", ConstLabels: labels,
			Help: "Table pages written by checkpoints."}),
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_extent_corrupt_reads_total", ConstLabels: labels,
			Help: "Reads of blocks whose checksum did not match. Worry at the first one: the disk is losing data."}),
		mended: prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_extent_mended_blocks_total", ConstLabels: labels,
			Help: "Blocks that the disk did not give back, and that were written anew from another replica. Worry when it grows: the disk is losing data."}),
	}
	retries := prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "storage_extent_open_retries_total", ConstLabels: labels,
		Help: "Opens of the store's files that failed for want of descriptors or memory, and were repeated. Worry when it grows: the store waits. Raise the limit of open files."},
		func() float64 { return float64(files.Retries()) })
	pulling := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_extent_pulls", ConstLabels: labels,
		Help: "Replicas of the store that are pulled from another node now, or were and are not installed yet. Worry when it is not 0 for long: what they hold is not free."},
		func() float64 { return float64(pulls()) })
	kept := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_extent_staged_bytes", ConstLabels: labels,
		Help: "Bytes of blocks that pulls have brought which broke, kept for the next pull of the same replica. Worry when it is not 0 for hours while storage_extent_pulls is 0: nobody goes on with them."},
		func() float64 { return float64(staged()) })
	var err error
	if m.unregister, err = registry.Register(r, m.checkpoints, m.pages, m.corrupt, m.mended, retries, pulling, kept); err != nil {
		return nil, storage.E("register metrics of", storage.KindInternal, "store "+id.String(), err)
	}
	return m, nil
}

func (m *metrics) checkpoint(pages int, d time.Duration) {
	m.checkpoints.Observe(d.Seconds())
	m.pages.Add(float64(pages))
}
