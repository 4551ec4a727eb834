package op

import (
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
)

// told is an error as another node has told it, with a number.
type told uint64

func (t told) Error() string       { return "told" }
func (t told) ErrorDetail() uint64 { return uint64(t) }

// TestLeaderHint: a hint comes of an error of this node and of another's, only with KindNotLeader, and only if it is a node's id.
func TestLeaderHint(t *testing.T) {
	for _, tc := range []struct {
		kind  storage.Kind
		cause error
		want  storage.NodeID
	}{
		{storage.KindNotLeader, &NotLeaderError{Group: 7, Leader: 3}, 3},
		{storage.KindNotLeader, &NotLeaderError{Group: 7}, 0},
		{storage.KindNotLeader, told(4), 4},
		{storage.KindNotLeader, told(1<<32 + 4), 0},
		{storage.KindNotLeader, errors.New("no number"), 0},
		{storage.KindNotLeader, nil, 0},
		{storage.KindUnavailable, told(4), 0},
	} {
		if got := LeaderHint(storage.E("propose", tc.kind, "group 7", tc.cause)); got != tc.want {
			t.Errorf("%v, %v: node %v, want %v", tc.kind, tc.cause, got, tc.want)
		}
	}
}
