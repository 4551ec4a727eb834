package replication

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
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
		h.retainBytes = 1
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
				if err := h.nodes[leader].host.mustGroup(1).checkpoint(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(time.Second)
		}
		if first, _ := h.instance(leader).log.FirstIndex(); first <= h.instance(away).raft.LastIndex() {
			t.Fatalf("the leader's log begins at %d: no manifest is needed", first)
		}
		h.net.HealAll()
		began := time.Now()
		h.eventually("the follower to have it all", func() bool {
			in := h.instance(away)
			return in != nil && in.raft.AppliedIndex() == h.instance(leader).raft.AppliedIndex()
		})
		if took := time.Since(began); took > backAgain {
			t.Errorf("the follower had it all after %v", took)
		}
	})
}

// TestVoteIsHeldUntilItMayLeave: a vote that a promise forbids leaves when the promise ends, in the same election.
// Without the wait of Transport.mayVote (tried) the election fails, and the next one is up to a second later.
func TestVoteIsHeldUntilItMayLeave(t *testing.T) {
	for name, held := range map[string]func(a, b *Transport) *Transport{
		"its own":   func(a, _ *Transport) *Transport { return a },
		"another's": func(_, b *Transport) *Transport { return b },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, stop := twoTransports(t)
				defer stop()
				<-time.After(time.Second) // past the promises of the start
				go func() {
					rpc := <-b.Consumer()
					rpc.Respond(&raft.RequestVoteResponse{Term: 7, Granted: true}, nil)
				}()
				bound := held(a, b)
				bound.promise.success(6, time.Now())
				began := time.Now()
				var resp raft.RequestVoteResponse
				err := a.RequestVote("2", "2", &raft.RequestVoteRequest{RPCHeader: headerOf(1), Term: 7}, &resp)
				if err != nil || !resp.Granted {
					t.Fatalf("%+v, %v", resp, err)
				}
				if took := time.Since(began); took < span {
					t.Errorf("the vote left after %v, the promise stands for %v", took, span)
				}
			})
		})
	}
}

// TestVoteIsNotHeldForALivingLeader: a promise that is renewed ends the wait for it.
func TestVoteIsNotHeldForALivingLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, stop := twoTransports(t)
		defer stop()
		<-time.After(time.Second)
		end := time.Now().Add(5 * time.Second)
		go func() {
			for time.Now().Before(end) {
				a.promise.success(6, time.Now())
				<-time.After(100 * time.Millisecond)
			}
		}()
		synctest.Wait()
		began := time.Now()
		if a.mayVote(7, true, false) || time.Since(began) > span {
			t.Errorf("a vote against a leader that is heard waited for %v", time.Since(began))
		}
		<-time.After(time.Until(end))
	})
}
