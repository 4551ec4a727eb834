package runner

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"
)

// TestTransfersAfterAFailure: after a failed transfer there is none to the same replica in that term before it has
// acknowledged something newer; and none beside another.
func TestTransfersAfterAFailure(t *testing.T) {
	var ts transfers
	want := func(server string, term, acked uint64, allowed bool) {
		t.Helper()
		if ts.allowed(raft.ServerID(server), term, acked) != allowed {
			t.Errorf("a transfer to %s in term %d, acknowledged %d: want allowed %v", server, term, acked, allowed)
		}
	}
	one := func(server string, term, lastIndex uint64, ended error) {
		t.Helper()
		if err := ts.begin(raft.ServerID(server), term, 1000); err != nil {
			t.Errorf("a transfer to %s in term %d: %v", server, term, err)
		}
		if err := ts.begin("c", term, 1000); !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			t.Errorf("a second transfer beside the one to %s: %v", server, err)
		}
		ts.end(raft.ServerID(server), term, lastIndex, ended)
	}
	want("a", 3, 0, true)
	one("a", 3, 9, nil)
	want("a", 3, 0, true)
	one("a", 3, 10, errors.New("time-out"))
	want("a", 3, 10, false)
	if err := ts.begin("a", 3, 10); !errors.Is(err, ErrTransferAgain) {
		t.Errorf("a transfer after a failure: %v", err)
	}
	want("a", 3, 11, true)
	want("b", 3, 0, true)
	want("a", 4, 0, true)
	one("b", 4, 12, errors.New("time-out"))
	want("b", 4, 12, false)
	if len(ts.failed) != 1 {
		t.Errorf("%d failures are kept, of which one is of this term", len(ts.failed))
	}
}
