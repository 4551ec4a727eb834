package extent

import (
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/registry"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/replication/extent/scrub"
)

// compactionMetrics are those of a store's compaction.
type compactionMetrics struct {
	copied, moved, victims, skipped, damaged, trimmed prometheus.Counter
	unregister                                        func()
}

// newCompactionMetrics returns metrics that register makes known.
func newCompactionMetrics(id storage.StoreID) *compactionMetrics {
	labels := prometheus.Labels{"store": id.String()}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "storage_store_compaction_" + name + "_total", ConstLabels: labels, Help: help})
	}
	return &compactionMetrics{
		copied: counter("copied_bytes", "Bytes of live blocks that compaction has copied, to make room where they lay. Worry when it grows faster than "+
			"clients write for hours: the store is nearly full of live data."),
		moved:   counter("moved_blocks", "Entries of tables that compaction has made refer to a copy."),
		victims: counter("victims", "Segments from which compaction has begun to move what lives in them."),
		skipped: counter("skipped", "Segments that compaction has left with something live in them. Worry when it grows as fast as the victims."),
		damaged: counter("damaged", "Segments that compaction has left because a block in them cannot be read. Worry at the first one: the disk is losing data."),
		trimmed: counter("given_back", "Free segments that were given back to the file system."),
	}
}

// register makes them known, and with them what takes the room of the store.
func (m *compactionMetrics) register(r prometheus.Registerer, s *Store) (err error) {
	m.unregister, err = registry.Register(r, m.copied, m.moved, m.victims, m.skipped, m.damaged, m.trimmed,
		room.NewCollector(s.identity.Store, s.room, s.compacting), scrub.NewCollector(s.identity.Store, s.scrubber))
	if err != nil {
		return storage.E("register metrics of", storage.KindInternal, "store "+s.identity.Store.String(), err)
	}
	return nil
}

func (m *compactionMetrics) Victim()  { m.victims.Inc() }
func (m *compactionMetrics) Skipped() { m.skipped.Inc() }
func (m *compactionMetrics) Damaged() { m.damaged.Inc() }
