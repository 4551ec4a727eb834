package op

import (
	"errors"
	"fmt"
	"math"

	storage "github.com/storaged/storaged"
)

// NotLeaderError says that another replica leads a group, and where, if that is known. It is the cause of a
// storage.Error of KindNotLeader; its number travels between nodes.
type NotLeaderError struct {
	Group  storage.GroupID
	Leader storage.NodeID // 0: not known
}

// NotLeader is the error of a request that only the leader of a group takes; leader is 0 if it is not known.
func NotLeader(op, subject string, group storage.GroupID, leader storage.NodeID) error {
	return storage.E(op, storage.KindNotLeader, subject, &NotLeaderError{Group: group, Leader: leader})
}

// Error implements error.
func (e *NotLeaderError) Error() string {
	if e.Leader == 0 {
		return "this replica does not lead, and knows of no leader"
	}
	return fmt.Sprintf("node %d leads", e.Leader)
}

// ErrorDetail is the leader: it travels with the error (peer.Detailer).
func (e *NotLeaderError) ErrorDetail() uint64 { return uint64(e.Leader) }

// LeaderHint returns the node that an error of KindNotLeader names as leader, here or from another node; 0 for none.
func LeaderHint(err error) storage.NodeID {
	var named interface{ ErrorDetail() uint64 } // a NotLeaderError, or what a peer has said of one
	if storage.KindOf(err) == storage.KindNotLeader && errors.As(err, &named) && named.ErrorDetail() <= math.MaxUint32 {
		return storage.NodeID(named.ErrorDetail())
	}
	return 0
}
