package runner

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
)

// TestIdleHeartbeatsTravelTogether guards the wake-ups of an idle cluster: eight groups on three nodes, whose heartbeats
// leave each node in one frame to each other node, four times a heartbeat time-out, at the same instants on all. The
// library asks for them as soon as the ones before are answered. Take beatOn out of Dispatcher.flush, and the library asks
// at some time of its own for each group and follower.
func TestIdleHeartbeatsTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, groups = 3, 8
		rs, stop := followed(t, nodes, groups)
		defer stop()
		<-time.After(5 * time.Second)
		const watched = 10 * time.Second
		type way struct{ from, to storage.NodeID }
		frames, waiting := map[way]map[time.Time]bool{}, map[way]int{}
		busy := 0 // milliseconds in which the number of heartbeats that wait changed somewhere
		for began := time.Now(); time.Since(began) < watched; <-time.After(time.Millisecond) {
			changed := false
			for i, r := range rs {
				id := storage.NodeID(i + 1)
				r.beatMu.Lock()
				for to, q := range r.pending {
					w := way{id, to}
					if frames[w] == nil {
						frames[w] = map[time.Time]bool{}
					}
					frames[w][q.lastFlush] = true
					changed = changed || waiting[w] != len(q.calls)
					waiting[w] = len(q.calls)
				}
				r.beatMu.Unlock()
			}
			if changed {
				busy++
			}
		}
		ticks := int(watched / (span / 4))
		for w, at := range frames {
			if len(at) < ticks-1 && len(at) > 1 || len(at) > ticks+2 { // 1: the node leads no more
				t.Errorf("%d frames of heartbeats from node %v to %v in %v, want %d", len(at), w.from, w.to, watched, ticks)
			}
		}
		if busy > 3*ticks || busy == 0 {
			t.Errorf("the library asked for heartbeats, or they left, in %d milliseconds of %v; want them in %d and just after", busy, watched, ticks)
		}
	})
}

// followed starts groups with a replica on each of the nodes, and returns the nodes' routers when every group has a leader.
func followed(t *testing.T, nodes, groups int) ([]*Dispatcher, func()) {
	t.Helper()
	ps, rs, stop := simulated(t, nodes)
	var c raft.Configuration
	for i := range nodes {
		id := storage.NodeID(i + 1)
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id.String()), Address: NodeAddress(id)})
	}
	var all []*Instance
	for g := range groups {
		for i, s := range c.Servers {
			in := New(Config{Subject: "group", OnLeadership: func() {}, Logger: slog.New(slog.DiscardHandler)})
			tr := NewTransport(TransportConfig{Group: storage.GroupID(g + 1), Self: s.ID, Node: storage.NodeID(i + 1), Peers: ps[i],
				Dispatcher: rs[i], HeartbeatTimeout: span})
			conf, store, snaps := Settings(s.ID, span, slog.New(slog.DiscardHandler)), raft.NewInmemStore(), raft.NewInmemSnapshotStore()
			err := raft.BootstrapCluster(conf, store, store, snaps, tr, c)
			if err == nil {
				err = in.Start(conf, nothing{}, store, store, snaps, tr)
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, in)
		}
	}
	for lead := 0; lead < groups; <-time.After(10 * time.Millisecond) {
		lead = 0
		for _, in := range all {
			if in.Leads() && in.Ready(in.CurrentTerm()) {
				lead++
			}
		}
	}
	return rs, func() {
		for _, in := range all {
			if err := in.Stop(); err != nil {
				t.Error(err)
			}
		}
		stop()
	}
}
