package runner

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func voters(ids ...raft.ServerID) raft.Configuration {
	var c raft.Configuration
	for _, id := range ids {
		c.Servers = append(c.Servers, raft.Server{ID: id, Suffrage: raft.Voter})
	}
	return c
}

// TestLease states when a leader may answer from its own table. The marked lines of lease.go each make a case fail
// when they are taken out (tried): ready, transferred, the 0.8, the term.
func TestLease(t *testing.T) {
	t0 := time.Unix(1000, 0)
	three := voters("a", "b", "c")
	ready := func() *lease {
		l := newLease(span)
		l.begin(7)
		l.setReady(7)
		return l
	}
	t.Run("needs a majority", func(t *testing.T) {
		l := ready()
		if l.valid(7, "a", three, t0) {
			t.Fatal("valid without an answer")
		}
		l.success("b", 7, t0, 0)
		if !l.valid(7, "a", three, t0.Add(399*time.Millisecond)) {
			t.Fatal("not valid with one answer of two")
		}
		if l.valid(7, "a", three, t0.Add(400*time.Millisecond)) {
			t.Fatal("valid beyond 0.8 of the heartbeat time-out")
		}
	})
	t.Run("counts the send time, not the arrival", func(t *testing.T) {
		l := ready()
		l.success("b", 7, t0.Add(-time.Second), 0) // arrives now, was sent a second ago: a thawed leader
		if l.valid(7, "a", three, t0) {
			t.Fatal("an old request renewed the lease")
		}
	})
	t.Run("needs the Barrier", func(t *testing.T) {
		l := newLease(span)
		l.begin(7)
		l.success("b", 7, t0, 0)
		if l.valid(7, "a", three, t0) {
			t.Fatal("valid before the Barrier of the term")
		}
	})
	t.Run("ends with a transfer", func(t *testing.T) {
		l := ready()
		l.success("b", 7, t0, 0)
		l.giveUp(7)
		if l.valid(7, "a", three, t0) {
			t.Fatal("valid after TimeoutNow was sent")
		}
	})
	t.Run("answers of other terms do not count", func(t *testing.T) {
		l := ready()
		l.success("b", 6, t0, 0)
		if l.valid(7, "a", three, t0) {
			t.Fatal("an answer of an older term counted")
		}
		l.success("b", 8, t0, 0)
		if l.valid(7, "a", three, t0) || l.valid(8, "a", three, t0) {
			t.Fatal("an answer of a later term kept the lease, or opened one without a Barrier")
		}
	})
	t.Run("a leader that is no voter does not count itself", func(t *testing.T) {
		l := ready()
		l.success("b", 7, t0, 0)
		if l.valid(7, "x", three, t0) {
			t.Fatal("one of three was taken for a majority")
		}
	})
	t.Run("a lone voter needs nobody", func(t *testing.T) {
		if l := ready(); !l.valid(7, "a", voters("a"), t0) {
			t.Fatal("not valid")
		}
	})
}

func TestLeaseConfirmWaitsForLaterAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLease(span)
		l.begin(3)
		l.setReady(3)
		arrived := time.Now()
		l.success("b", 3, arrived.Add(-time.Millisecond), 0) // sent before the read arrived: must not count
		got := make(chan bool, 1)
		go func() {
			got <- l.confirm(context.Background(), 3, "a", func() raft.Configuration { return voters("a", "b", "c") }, arrived)
		}()
		synctest.Wait()
		select {
		case v := <-got:
			t.Fatalf("confirmed (%v) by an answer to an older request", v)
		default:
		}
		l.success("c", 3, arrived.Add(time.Millisecond), 0)
		if !<-got {
			t.Fatal("not confirmed by a later answer")
		}
		go func() {
			got <- l.confirm(context.Background(), 3, "a", func() raft.Configuration { return voters("a", "b", "c") }, arrived.Add(time.Hour))
		}()
		synctest.Wait()
		l.begin(4)
		if <-got {
			t.Fatal("confirmed in a term that is over")
		}
	})
}
