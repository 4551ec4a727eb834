package replication

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged"
)

// TestIdleHeartbeatsTravelTogether guards the wake-ups of an idle cluster: eight groups on three nodes, whose heartbeats
// leave each node in one frame to each other node, four times a heartbeat time-out, at the same instants on all, and are
// asked for by the library as soon as the ones before are answered. Take beatOn out of Router.flush, and the library asks
// at some time of its own for each group and follower.
func TestIdleHeartbeatsTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		for _, n := range h.nodes {
			n.start()
		}
		const groups = 8
		for id := storage.GroupID(1); id <= groups; id++ {
			h.bootstrapVoters(id, 1, 2, 3)
			h.awaitLeader(id)
		}
		<-time.After(5 * time.Second)
		const watched = 10 * time.Second
		type way struct{ from, to storage.NodeID }
		frames, waiting := map[way]map[time.Time]bool{}, map[way]int{}
		busy := 0 // milliseconds in which the number of heartbeats that wait changed somewhere
		for began := time.Now(); time.Since(began) < watched; <-time.After(time.Millisecond) {
			changed := false
			for id, n := range h.nodes {
				r := n.host.router
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
