package replication

import (
	"testing"

	"github.com/hashicorp/raft"
)

// TestTransfersAfterAFailure: after a failed transfer there is none to the same replica in that term before it has
// acknowledged something newer. The simulation finds the group that refuses everything for good without it, though not
// with every run of a seed.
func TestTransfersAfterAFailure(t *testing.T) {
	var ts transfers
	want := func(server string, term, acked uint64, allowed bool) {
		t.Helper()
		if ts.allowed(raft.ServerID(server), term, acked) != allowed {
			t.Errorf("a transfer to %s in term %d, acknowledged %d: want allowed %v", server, term, acked, allowed)
		}
	}
	want("a", 3, 0, true)
	ts.fail("a", 3, 10)
	want("a", 3, 10, false)
	want("a", 3, 11, true)
	want("b", 3, 0, true)
	want("a", 4, 0, true)
	ts.fail("b", 4, 12)
	want("b", 4, 12, false)
	if len(ts.failed) != 1 {
		t.Errorf("%d failures are kept, of which one is of this term", len(ts.failed))
	}
}
