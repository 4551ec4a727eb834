package hostgateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/storaged/storaged/api/host"
)

// deviceStates counts the gateway's devices by state. It implements prometheus.Collector.
type deviceStates struct{ gateway *Gateway }

var deviceStatesDesc = prometheus.NewDesc("storage_host_devices",
	"Volumes attached to this host by the state of their device. Worry about any that failed: its users get errors until it is detached and attached again. One that is detaching for long waits for the cluster to hear of it, and nobody else gets the volume.",
	[]string{"state"}, nil)

// Describe implements prometheus.Collector.
func (deviceStates) Describe(ch chan<- *prometheus.Desc) { ch <- deviceStatesDesc }

// Collect implements prometheus.Collector.
func (s deviceStates) Collect(ch chan<- prometheus.Metric) {
	count := map[host.State]int{host.StateConnecting: 0, host.StateReady: 0, host.StateDetaching: 0, host.StateFailed: 0}
	for _, h := range s.gateway.all() {
		count[h.verified().State]++
	}
	for state, n := range count {
		ch <- prometheus.MustNewConstMetric(deviceStatesDesc, prometheus.GaugeValue, float64(n), string(state))
	}
}
