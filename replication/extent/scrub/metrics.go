package scrub

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// Collector shows what a worker has done and found.
type Collector struct {
	w       *Worker
	figures []figure
}

type figure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(Counts, storage.StoreScrub) float64
}

// NewCollector returns the metrics of a store's scrub.
func NewCollector(id storage.StoreID, w *Worker) *Collector {
	c := &Collector{w: w}
	add := func(kind prometheus.ValueType, name, help string, value func(Counts, storage.StoreScrub) float64) {
		c.figures = append(c.figures, figure{prometheus.NewDesc(name, help, nil, prometheus.Labels{"store": id.String()}), kind, value})
	}
	add(prometheus.CounterValue, "storage_scrub_read_bytes_total", "Bytes that the scrub has read.",
		func(n Counts, _ storage.StoreScrub) float64 { return float64(n.Bytes) })
	add(prometheus.CounterValue, "storage_scrub_checked_blocks_total", "Live blocks that the scrub has compared with their checksums.",
		func(n Counts, _ storage.StoreScrub) float64 { return float64(n.Blocks) })
	add(prometheus.CounterValue, "storage_scrub_found_blocks_total", "Live blocks that the scrub has found damaged. Worry when it grows: the disk is losing data.",
		func(n Counts, _ storage.StoreScrub) float64 { return float64(n.Found) })
	add(prometheus.CounterValue, "storage_scrub_mended_blocks_total", "Of these, blocks that were written anew from another replica.",
		func(n Counts, _ storage.StoreScrub) float64 { return float64(n.Mended) })
	add(prometheus.CounterValue, "storage_scrub_damaged_records_total", "Records of the log that the scrub has found damaged, those of garbage included. Worry when it grows: the disk is losing data.",
		func(n Counts, _ storage.StoreScrub) float64 { return float64(n.DamagedRecords) })
	add(prometheus.GaugeValue, "storage_scrub_waiting_blocks", "Blocks that are damaged and not written anew yet. Worry when it is not 0 for minutes: a replica that has them does not answer, or there is no room.",
		func(_ Counts, r storage.StoreScrub) float64 { return float64(r.WaitingBlocks) })
	add(prometheus.GaugeValue, "storage_scrub_lost_blocks", "Blocks that no replica can read: reads of them fail. Worry at the first one.",
		func(_ Counts, r storage.StoreScrub) float64 { return float64(r.LostBlocks) })
	add(prometheus.GaugeValue, "storage_scrub_damaged_pages", "Pages of tables that the last pass could not read. Worry at the first one: replace the store.",
		func(_ Counts, r storage.StoreScrub) float64 { return float64(r.DamagedPages) })
	add(prometheus.GaugeValue, "storage_scrub_damaged_segments", "Segments that are not as they were written, and are being emptied. Worry when it is not 0 for hours.",
		func(_ Counts, r storage.StoreScrub) float64 { return float64(r.DamagedSegments) })
	add(prometheus.GaugeValue, "storage_scrub_interval_seconds", "How often a pass begins; 0: never.",
		func(_ Counts, r storage.StoreScrub) float64 { return r.Interval.Seconds() })
	add(prometheus.GaugeValue, "storage_scrub_age_seconds", "Time since a pass over all of the store has ended, or, if none has, since the first began. Worry when it is twice the interval.",
		func(_ Counts, r storage.StoreScrub) float64 { return age(r, time.Now()).Seconds() })
	add(prometheus.GaugeValue, "storage_scrub_pass_ratio", "How much of the present pass is done; 0 between passes.",
		func(_ Counts, r storage.StoreScrub) float64 { return r.Part })
	return c
}

func age(r storage.StoreScrub, now time.Time) time.Duration {
	from := r.LastPass
	if from.IsZero() {
		from = r.Begun
	}
	if from.IsZero() {
		return 0
	}
	return max(0, now.Sub(from))
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.figures {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	n, r := c.w.Counts(), c.w.Report()
	for _, f := range c.figures {
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(n, r))
	}
}
