package replication

import (
	"testing"
	"testing/synctest"
	"time"
)

// backAgain is how long a write may take once a majority is there: an election, and no pause of anybody.
const backAgain = 3 * time.Second

// TestFollowerThatWasAwayCountsAtOnce: a follower that was away for a minute is back, and the other one goes. Without the
// probes of Transport.AppendEntries (tried) the library's own pause, which doubles to 10.24 s with every attempt that
// failed, keeps the group from committing although leader and follower are a majority.
func TestFollowerThatWasAwayCountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		away, other := others(leader)
		h.net.Isolate(nodeName(away))
		for range 60 {
			c.write(0, block(1))
			<-time.After(time.Second)
		}
		h.net.HealAll()
		<-time.After(500 * time.Millisecond)
		h.net.Isolate(nodeName(other))
		began := time.Now()
		c.write(0, block(2))
		if took := time.Since(began); took > backAgain {
			t.Errorf("a write took %v although a majority was there", took)
		}
	})
}

// TestManifestForAFollowerThatWasAway is the same for one that is so far behind that it needs a manifest: without
// awaitPeer in Transport.InstallSnapshot (tried) it is sent up to 10.24 s after the follower is back.
func TestManifestForAFollowerThatWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.retainBytes, h.holdBytes = 1, -1
		for _, n := range h.nodes {
			n.start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c, leader := h.open(1, 7, 1), h.awaitLeader(1)
		defer h.close()
		away, _ := others(leader)
		h.net.Isolate(nodeName(away))
		for i := range 60 {
			c.write(0, block(byte(i)))
			if i%10 == 0 {
				if err := h.nodes[leader].replicas.mustGroup(1).checkpoint(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(time.Second)
		}
		if first, _ := h.instance(leader).log.FirstIndex(); first <= h.instance(away).LastIndex() {
			t.Fatalf("the leader's log begins at %d: no manifest is needed", first)
		}
		h.net.HealAll()
		began := time.Now()
		h.eventually("the follower to have it all", func() bool {
			in := h.instance(away)
			return in != nil && in.AppliedIndex() == h.instance(leader).AppliedIndex()
		})
		if took := time.Since(began); took > backAgain {
			t.Errorf("the follower had it all after %v", took)
		}
	})
}

// TestWhatIsCommittedIsTold: a follower is restarted, and is told what is committed by then, not when it went away. Whether it has caught up is
// judged by that (package status).
//
// Guards Transport.refresh: without it the probe that was begun when the follower went told it the number of then, and it was ready.
func TestWhatIsCommittedIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		away, _ := others(leader)
		h.nodes[away].crash()
		for i := range 30 {
			c.write(0, block(byte(i)))
			<-time.After(time.Second)
		}
		committed := h.instance(leader).CommitIndex()
		h.nodes[away].start()
		var told uint64
		for began := time.Now(); told == 0 && time.Since(began) < time.Minute; <-time.After(10 * time.Microsecond) {
			if in := h.instance(away); in != nil {
				told, _ = in.transport.LeaderCommit()
			}
		}
		if told < committed {
			t.Errorf("it is told first that %d entries are committed; when it was started %d were", told, committed)
		}
	})
}
