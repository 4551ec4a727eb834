package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
)

// TestProposalsEndWithTheirInstance guards I9: without runner.Do's end of futures (tried: until returns the future as it is) proposals that wait for the
// library when it shuts down wait for ever, and with them the blocks they hold.
func TestProposalsEndWithTheirInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, n, c := alone(t)
		defer h.close()
		g := n.replicas.mustGroup(1)
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

// apply proposes an entry, whatever it is, and waits for it.
func apply(in *instance, data []byte) error {
	_, err := runner.Do(context.Background(), in.Instance, "propose", func(r *raft.Raft) raft.ApplyFuture { return r.Apply(data, 0) })
	return err
}
