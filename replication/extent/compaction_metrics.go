package extent

import (
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/registry"
	"github.com/storaged/storaged/replication/extent/compact"
)

// compactionMetrics are those of a store's compaction.
type compactionMetrics struct {
	copied, moved, victims, skipped, damaged, trimmed prometheus.Counter
	unregister                                        func()
}

func newCompactionMetrics(r prometheus.Registerer, id storage.StoreID, room func() compact.Room) (*compactionMetrics, error) {
	labels := prometheus.Labels{"store": id.String()}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_store_compaction_" + name + "_total", ConstLabels: labels, Help: help})
	}
	gauge := func(name, help string, value func(compact.Room) int64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_store_" + name, ConstLabels: labels, Help: help},
			func() float64 { return float64(value(room())) })
	}
	m := &compactionMetrics{
		copied: counter("copied_bytes", "Bytes of live blocks that compaction has copied, to make room where they lay. Worry when it grows faster than "+
			"clients write for hours: the store is nearly full of live data."),
		moved:   counter("moved_blocks", "Entries of tables that compaction has made refer to a copy."),
		victims: counter("victims", "Segments from which compaction has begun to move what lives in them."),
		skipped: counter("skipped", "Segments that compaction has left with something live in them. Worry when it grows as fast as the victims."),
		damaged: counter("damaged", "Segments that compaction has left because a block in them cannot be read. Worry at the first one: the disk is losing data."),
		trimmed: counter("given_back", "Free segments that were given back to the file system."),
	}
	liveBytes := gauge("live_bytes", "Bytes of the blocks that tables refer to.", func(r compact.Room) int64 { return r.LiveBlocks * storage.BlockSize })
	garbage := gauge("garbage_bytes", "Bytes that segments take beyond what their live blocks would. Worry when it does not fall while the store is short of room.",
		func(r compact.Room) int64 { return r.Garbage() })
	var err error
	if m.unregister, err = registry.Register(r, m.copied, m.moved, m.victims, m.skipped, m.damaged, m.trimmed, liveBytes, garbage); err != nil {
		return nil, storage.E("register metrics of", storage.KindInternal, "store "+id.String(), err)
	}
	return m, nil
}

func (m *compactionMetrics) Victim()  { m.victims.Inc() }
func (m *compactionMetrics) Skipped() { m.skipped.Inc() }
func (m *compactionMetrics) Damaged() { m.damaged.Inc() }
