package replication

import (
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

func notLeader(what string, group storage.GroupID, leader storage.NodeID) error {
	return storage.E(what, storage.KindNotLeader, "group "+group.String(), &op.NotLeaderError{Group: group, Leader: leader})
}
