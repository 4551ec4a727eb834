package room

import (
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// Collector says what takes the room of a store when Prometheus asks, all of one moment.
type Collector struct {
	room   *Room
	now    func() storage.CompactionState
	gauges []spaceGauge
	state  *prometheus.Desc
	wrote  *prometheus.Desc
}

type spaceGauge struct {
	desc  *prometheus.Desc
	value func(Space, storage.StoreSpace) float64
}

// compactionStates are those that have a series.
var compactionStates = []storage.CompactionState{storage.CompactionOff, storage.CompactionIdle, storage.CompactionRunning, storage.CompactionBraked,
	storage.CompactionBehind, storage.CompactionNothingToWin, storage.CompactionNoRoom}

// NewCollector returns the metrics of a store's room. compaction says what compaction does now.
func NewCollector(id storage.StoreID, r *Room, compaction func() storage.CompactionState) *Collector {
	labels := prometheus.Labels{"store": id.String()}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("storage_store_"+name, help, variable, labels)
	}
	c := &Collector{room: r, now: compaction,
		state: desc("compaction_state", "1 for what compaction does now. Worry when it is \"nothing to win\" or \"no room\": room is short, and none is made.", "state"),
		wrote: desc("written_bytes_total", "Bytes of blocks that clients wrote, as they were applied. storage_segment_append_bytes_total grows by so many times as much: "+
			"entries, and the copies of compaction. Worry when that is more than six times for hours."),
	}
	for _, g := range []struct {
		name, help string
		value      func(Space, storage.StoreSpace) float64
	}{
		{"capacity_bytes", "What the store may use; the parts below add up to it: segments, tables, other and unused.",
			func(s Space, _ storage.StoreSpace) float64 { return float64(s.CapacityBytes) }},
		{"live_bytes", "Bytes of the blocks that tables refer to.",
			func(_ Space, u storage.StoreSpace) float64 { return float64(u.LiveBytes) }},
		{"garbage_bytes", "Bytes that segments take beyond what their live blocks would. Worry when it does not fall while the store is short of room.",
			func(_ Space, u storage.StoreSpace) float64 { return float64(u.GarbageBytes) }},
		{"table_bytes", "Bytes of the tables, which say where blocks lie.",
			func(_ Space, u storage.StoreSpace) float64 { return float64(u.TableBytes) }},
		{"other_bytes", "What others have of the store's room: other files, the catalog, what the file system keeps. Worry when it grows: the store has less.",
			func(_ Space, u storage.StoreSpace) float64 { return float64(u.OtherBytes) }},
		{"unused_bytes", "What nothing takes, the reserve included. Worry when it stays below the reserve: writes wait.",
			func(_ Space, u storage.StoreSpace) float64 { return float64(u.UnusedBytes) }},
		{"reserve_bytes", "What is kept in reserve: with less unused, writes that allocate wait for compaction or are refused.",
			func(_ Space, u storage.StoreSpace) float64 { return float64(u.ReserveBytes) }},
		{"fill_ratio", "Which part is taken of the room that may be, as FILL of storagectl. Worry above 0.8; at 1 new data is refused.",
			func(_ Space, u storage.StoreSpace) float64 { return u.Fill }},
		{"no_room", "1 while the file system gives no room, whatever it says of itself. Worry at once: writes are refused.",
			func(_ Space, u storage.StoreSpace) float64 { return truth(u.NoRoom) }},
	} {
		c.gauges = append(c.gauges, spaceGauge{desc(g.name, g.help), g.value})
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range c.gauges {
		ch <- g.desc
	}
	ch <- c.state
	ch <- c.wrote
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	space := c.room.Space().WithCompaction(c.now())
	for _, g := range c.gauges {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(space, space.Usage()))
	}
	for _, s := range compactionStates {
		ch <- prometheus.MustNewConstMetric(c.state, prometheus.GaugeValue, truth(s == space.Usage().Compaction), string(s))
	}
	_, written := c.room.live.Blocks()
	ch <- prometheus.MustNewConstMetric(c.wrote, prometheus.CounterValue, float64(written*storage.BlockSize))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
