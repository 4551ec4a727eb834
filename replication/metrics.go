package replication

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the groups' state when Prometheus asks.
type collector struct{ replicas *Replicas }

var groupLabels = []string{"group"}

var (
	descLeader = prometheus.NewDesc("storage_replication_leader",
		"1 if this node's replica leads the group and is ready. Worry when the sum over all nodes is not 1 for long.", groupLabels, nil)
	descTerm = prometheus.NewDesc("storage_replication_term",
		"Raft term of the group. Worry when it climbs: leaders are lost again and again.", groupLabels, nil)
	descCommit = prometheus.NewDesc("storage_replication_commit_index", "Highest committed index of this replica.", groupLabels, nil)
	descLag    = prometheus.NewDesc("storage_replication_apply_lag_entries",
		"Entries committed and not yet applied. Worry when it grows.", groupLabels, nil)
	descFollower = prometheus.NewDesc("storage_replication_follower_lag_entries",
		"Entries that the slowest voter of a group led here has not acknowledged. Worry when it grows.", groupLabels, nil)
	descVoters = prometheus.NewDesc("storage_replication_voters",
		"Voters of a group led here. Worry when it is below the replicas that the cluster wants.", groupLabels, nil)
	descSilent = prometheus.NewDesc("storage_replication_store_silent",
		"1 if the store's disk has failed or hangs, so that its replicas keep silent. Worry at once.", []string{"store"}, nil)
	descUnreadable = prometheus.NewDesc("storage_replication_store_unreadable_blocks",
		"Different blocks that the disk did not give back within the last hour; they are read from other replicas. Worry when it is not 0: replace the disk.", []string{"store"}, nil)
	descFree = prometheus.NewDesc("storage_replication_store_free_bytes",
		"What can still be written to the store: what is free above its reserve, as FREE of storagectl. Worry when it nears 0: writes are refused then.", []string{"store"}, nil)
	descPulled = prometheus.NewDesc("storage_replication_pulled_bytes_total",
		"Bytes of blocks that replicas of the store were brought from other nodes. Its rate is that of making replicas anew. Worry when it stays while replicas are missing.", []string{"store"}, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLeader, descTerm, descCommit, descLag, descFollower, descVoters, descSilent, descUnreadable, descFree, descPulled} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, label)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, s := range c.replicas.Status() {
		id := s.Group.String()
		gauge(descLeader, flag(s.Ready), id)
		gauge(descTerm, float64(s.Term), id)
		gauge(descCommit, float64(s.CommitIndex), id)
		gauge(descLag, float64(s.CommitIndex-min(s.CommitIndex, s.AppliedIndex)), id)
		if s.Role != "leader" {
			continue
		}
		voters, slowest := 0, s.LastIndex
		for _, r := range s.Replicas {
			if r.Voter {
				voters++
				slowest = min(slowest, r.AckedIndex)
			}
		}
		gauge(descVoters, float64(voters), id)
		gauge(descFollower, float64(s.LastIndex-slowest), id)
	}
	for _, d := range c.replicas.disks {
		id := d.store.ID().String()
		gauge(descSilent, flag(d.silent()), id)
		gauge(descUnreadable, float64(d.unreadable.count()), id)
		gauge(descFree, float64(d.room.writable.Load()), id)
		ch <- prometheus.MustNewConstMetric(descPulled, prometheus.CounterValue, float64(d.pulled.Load()), id)
	}
}
