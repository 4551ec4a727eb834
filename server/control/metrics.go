package control

import (
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/registry"
	"github.com/storaged/storaged/server/catalog"
)

// metrics are the figures of one Controller. A nil registry keeps them to itself.
type metrics struct {
	steps      *prometheus.CounterVec
	unregister func()
}

func newMetrics(r prometheus.Registerer, c *Controller) (*metrics, error) {
	m := &metrics{steps: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "storage_catalog_steps_total",
		Help: "Steps of the reconcilers on the catalog's leader. Worry when failures of one kind keep growing.",
	}, []string{"kind", "outcome"})}
	all := []prometheus.Collector{m.steps}
	gauge := func(name, help string, value func() float64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("storage_catalog_leader", "1 on the node that leads the catalog. Worry when no node has it.", func() float64 {
		if c.inst.Leads() {
			return 1
		}
		return 0
	})
	gauge("storage_catalog_applied_index", "Last command of the catalog that this node has applied.", func() float64 {
		index, _ := c.fsm.next()
		return float64(index)
	})
	gauge("storage_catalog_version", "Version of the cluster that is in force. Worry when it stays behind long after the last node was upgraded.", func() float64 {
		var v int
		c.fsm.view(func(s *catalog.State) { v = s.InForce() })
		return float64(v)
	})
	gauge("storage_catalog_age_seconds", "Time since this node heard the catalog's leader, -1 if never. Worry above a few seconds.",
		func() float64 {
			if f := c.Freshness(); f.Age != catalog.NeverHeard {
				return f.Age.Seconds()
			}
			return -1
		})
	for _, state := range []storage.NodeState{storage.NodeUp, storage.NodeSuspect, storage.NodeDown} {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_catalog_nodes",
			Help:        "Nodes by state, as this node's copy has them. Worry about any that is down.",
			ConstLabels: prometheus.Labels{"state": string(state)}}, func() float64 {
			return float64(c.countNodes(func(n storage.Node) bool { return n.State == state }))
		}))
	}
	for _, intent := range []storage.NodeIntent{storage.IntentDrain, storage.IntentMaintenance} {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_catalog_nodes_leaving",
			Help:        "Nodes that drain, or are in maintenance, as this node's copy has them.",
			ConstLabels: prometheus.Labels{"intent": string(intent)}}, func() float64 {
			return float64(c.countNodes(func(n storage.Node) bool { return n.Intent == intent }))
		}))
	}
	var err error
	if m.unregister, err = registry.Register(r, all...); err != nil {
		return nil, storage.E("register metrics", storage.KindInternal, "catalog", err)
	}
	return m, nil
}

// step counts a task that has ended.
func (m *metrics) step(kind string, err error) {
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	m.steps.WithLabelValues(kind, outcome).Inc()
}

func (c *Controller) countNodes(is func(storage.Node) bool) int {
	n := 0
	c.fsm.view(func(s *catalog.State) {
		for _, x := range s.Nodes() {
			if is(x) {
				n++
			}
		}
	})
	return n
}
