package replication

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// booked is what a node has booked for each stage.
type booked map[string]stage

type stage struct {
	seconds float64
	n       uint64
}

// since returns what was booked after before.
func (b booked) since(before booked) booked {
	d := booked{}
	for name, e := range b {
		d[name] = stage{e.seconds - before[name].seconds, e.n - before[name].n}
	}
	return d
}

// metrics of a node's stages
const (
	writeStages    = "storage_replication_write_stage_seconds"
	followerStages = "storage_replication_follower_stage_seconds"
	appendTrips    = "storage_replication_append_seconds"
)

// bookedBy returns what a node has booked, by metric and the value of its label.
func bookedBy(t *testing.T, r *prometheus.Registry) map[string]booked {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]booked{}
	for _, f := range families {
		b := booked{}
		for _, m := range f.GetMetric() {
			if m.GetSummary() != nil {
				b[m.GetLabel()[0].GetValue()] = stage{m.GetSummary().GetSampleSum(), m.GetSummary().GetSampleCount()}
			}
		}
		all[f.GetName()] = b
	}
	return all
}

// TestStagesOfAWrite: every stage of a write is booked once, where its time goes, and at the leader they add up to the proposal. In virtual time a link takes 100 us, and the disk what the test has it take. Without the station of the name
// (tried: each pass, and the reply of Transport.timed) its stage is 0 and its time counts in the next.
func TestStagesOfAWrite(t *testing.T) {
	const slow, trip = 7 * time.Millisecond, 200 * time.Microsecond
	for _, c := range []struct {
		name                   string
		leader, one, other     bool // whose disk is slow
		follower, ownLog, sync time.Duration
	}{
		{name: "no disk", follower: trip},
		{name: "the leader's", leader: true, follower: trip, ownLog: slow - trip},
		{name: "a follower's", one: true, follower: trip, sync: slow - trip/2},
		{name: "both followers'", one: true, other: true, follower: slow + trip/2, sync: 2 * (slow - trip/2)},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t, 3)
				defer h.close()
				registries := map[storage.NodeID]*prometheus.Registry{}
				h.configure = func(cfg *Config) {
					registries[cfg.Node] = prometheus.NewRegistry()
					cfg.Metrics = registries[cfg.Node]
				}
				for id := storage.NodeID(1); id <= 3; id++ {
					h.nodes[id].start()
				}
				h.bootstrapVoters(1, 1, 2, 3)
				client := h.open(1, 7, 1)
				leader := h.awaitLeader(1)
				one, other := others(leader)
				client.write(0, block(1))
				<-time.After(time.Second) // the last follower
				before := map[storage.NodeID]map[string]booked{}
				for id, r := range registries {
					before[id] = bookedBy(t, r)
				}
				now := func(id storage.NodeID, metric string) booked {
					return bookedBy(t, registries[id])[metric].since(before[id][metric])
				}
				for id, stall := range map[storage.NodeID]bool{leader: c.leader, one: c.one, other: c.other} {
					if stall {
						h.nodes[id].stall.begin()
					}
				}
				done := client.pending(leader, 0, block(2))
				<-time.After(slow)
				for _, n := range h.nodes {
					n.stall.end()
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Second)
				want := map[string]time.Duration{"follower": c.follower, "own_log": c.ownLog}
				wrote := now(leader, writeStages)
				for name, e := range wrote {
					if e.n != 1 || math.Abs(e.seconds-want[name].Seconds()) > 1e-9 {
						t.Errorf("%s: %d in %v s, want 1 in %v", name, e.n, e.seconds, want[name])
					}
				}
				if len(wrote) != 9 {
					t.Errorf("%d stages", len(wrote))
				}
				var synced float64
				for _, n := range []storage.NodeID{one, other} {
					took, sent := 0.0, now(leader, appendTrips)[n.String()]
					followed := now(n, followerStages)
					for name, e := range followed {
						if e.n != 1 {
							t.Errorf("node %v, %s: %d requests", n, name, e.n)
						}
						took += e.seconds
					}
					if len(followed) != 4 || sent.n != 1 || math.Abs(sent.seconds-took-trip.Seconds()) > 1e-9 {
						t.Errorf("node %v has the request for %v s, and the leader waits %+v", n, took, sent)
					}
					synced += followed["sync"].seconds
				}
				if math.Abs(synced-c.sync.Seconds()) > 1e-9 {
					t.Errorf("followers synced for %v s, want %v", synced, c.sync)
				}
			})
		})
	}
}
