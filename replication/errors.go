package replication

import (
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
)

// NotLeaderError says that another replica leads a group, and where, if that is known. It is the cause of a
// storage.Error of KindNotLeader; its number travels between nodes.
type NotLeaderError struct {
	Group  storage.GroupID
	Leader storage.NodeID // 0: not known
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
	if storage.KindOf(err) != storage.KindNotLeader {
		return 0
	}
	var nl *NotLeaderError
	if errors.As(err, &nl) {
		return nl.Leader
	}
	var remote *peer.RemoteError
	if errors.As(err, &remote) && remote.Detail <= math.MaxUint32 {
		return storage.NodeID(remote.Detail)
	}
	return 0
}

func notLeader(op string, group storage.GroupID, leader storage.NodeID) error {
	return storage.E(op, storage.KindNotLeader, "group "+group.String(), &NotLeaderError{group, leader})
}

// fromRaft translates an error of the library. Outcomes that are not known are KindUnavailable: the gateway sends the
// same number again.
func (g *group) fromRaft(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return notLeader(op, g.id, g.leader())
	default:
		return storage.E(op, storage.KindUnavailable, "group "+g.id.String(), err)
	}
}
