package peer

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts without locks; prometheus reads the counters when it scrapes.
type metrics struct {
	framesSent, framesReceived [laneCount]atomic.Int64
	bytesSent, bytesReceived   [laneCount]atomic.Int64

	connected                                               atomic.Int64
	lost, dialFailures, rejected, crowded, refused, damaged atomic.Int64
}

func (m *metrics) sent(lane Lane, bytes int64) {
	m.framesSent[lane].Add(1)
	m.bytesSent[lane].Add(bytes)
}

func (m *metrics) received(lane Lane, bytes int64) {
	m.framesReceived[lane].Add(1)
	m.bytesReceived[lane].Add(bytes)
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	type counter struct {
		name, help string
		v          *atomic.Int64
		labels     prometheus.Labels
	}
	counters := []counter{
		{"storage_peer_lost_total", "Connection sets that ended while in use. Worry when it keeps growing: a network or a node is ill.", &m.lost, nil},
		{"storage_peer_dial_failures_total", "Attempts to connect to a peer that failed.", &m.dialFailures, nil},
		{"storage_peer_rejected_connections_total", "Connections of peers refused at the greeting. Worry about any: a foreign cluster or version, or a wrong address.", &m.rejected, nil},
		{"storage_peer_refused_connections_total", "Connections of peers closed at once, because there were too many, in all or of their address. Worry when it grows.", &m.crowded, nil},
		{"storage_peer_damaged_frames_total", "Frames of peers whose payload was not what its checksums say: refused, and sent again. Worry about more than one: a network card, a switch or memory is ill.", &m.damaged, nil},
		{"storage_peer_refused_requests_total", "Requests of peers refused before their handler saw them. Worry when it keeps growing: this node is overloaded.", &m.refused, nil},
	}
	for lane := Lane(0); lane < laneCount; lane++ {
		labels := prometheus.Labels{"lane": lane.String()}
		counters = append(counters,
			counter{"storage_peer_writes_total", "Writes to peers' connections; frames that wait together share one.", &m.framesSent[lane], labels},
			counter{"storage_peer_sent_bytes_total", "Bytes sent to peers.", &m.bytesSent[lane], labels},
			counter{"storage_peer_received_frames_total", "Frames received from peers.", &m.framesReceived[lane], labels},
			counter{"storage_peer_received_bytes_total", "Bytes received from peers.", &m.bytesReceived[lane], labels})
	}
	for _, c := range counters {
		if err := r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: c.name, Help: c.help, ConstLabels: c.labels},
			func() float64 { return float64(c.v.Load()) })); err != nil {
			return err
		}
	}
	return r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "storage_peer_connected_peers",
		Help: "Peers to which this node holds connections."}, func() float64 { return float64(m.connected.Load()) }))
}
