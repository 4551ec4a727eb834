package replication

import (
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// TestProposalsEndWithTheirInstance guards I9: without until in group.propose (tried) proposals that wait for the
// library when it shuts down wait for ever, and with them the blocks they hold.
func TestProposalsEndWithTheirInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		defer h.close()
		n := h.nodes[1]
		n.start()
		if err := n.host.Bootstrap(1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		c := h.open(1, 7, 1)
		g := n.host.mustGroup(1)
		for range 20 { // whether the library looks at its queue or at its end first is chance
			h.awaitLeader(1)
			n.stall.begin() // the library waits for the first proposal's sync; the others wait in its queue
			var done []<-chan error
			for i := range uint32(16) {
				done = append(done, c.pending(1, i*storage.BlockSize, block(1)))
			}
			time.Sleep(10 * time.Millisecond)
			go g.restart()
			time.Sleep(10 * time.Millisecond)
			n.stall.end()
			deadline := time.After(10 * time.Second)
			for _, d := range done {
				select {
				case <-d:
				case <-deadline:
					t.Fatal("a proposal waits 10 s after its instance has stopped")
				}
			}
			if len(g.ranges.extents) != 0 {
				t.Fatalf("blocks stay reserved: %v", g.ranges.extents)
			}
		}
	})
}

// TestFuturesOfTheLibraryTakeAnEnd guards until against a library whose futures have no such field any more.
func TestFuturesOfTheLibraryTakeAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		defer h.close()
		n := h.nodes[1]
		n.start()
		if err := n.host.Bootstrap(1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		h.awaitLeader(1)
		in := n.host.mustGroup(1).inst.Load()
		noop := op.Op{Kind: op.Noop} // what cannot be decoded stops the replica
		for name, future := range map[string]raft.Future{
			"apply": in.raft.Apply(noop.AppendHeader(nil), 0), "barrier": in.raft.Barrier(0),
			"change":   in.raft.AddNonvoter("other", "2", 0, time.Second),
			"transfer": in.raft.LeadershipTransferToServer("other", "2"),
		} {
			v := reflect.ValueOf(until(&in.futures, future)).Elem()
			if f := v.FieldByName(shutdownField); !f.IsValid() || f.IsNil() {
				t.Errorf("%s: the future does not end with its instance", name)
			}
			_ = future.Error()
		}
	})
}
