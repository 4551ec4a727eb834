package runner

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
)

// Change is one change of a group's configuration, as orders name it.
type Change string

// The changes. What is so already is no error.
const (
	AddNonvoter  Change = "add_nonvoter"
	AddVoter     Change = "add_voter" // of a non-voter that has caught up; refused otherwise
	RemoveServer Change = "remove"
)

// ChangeTimeout bounds how long a change waits for its turn in the library's queue.
const ChangeTimeout = 5 * time.Second

// Change changes the configuration by one server, and returns when that is committed. With a configIndex the library refuses it
// unless that is the newest configuration. Errors are those of Do.
func (i *Instance) Change(ctx context.Context, op string, change Change, server raft.ServerID, node storage.NodeID, configIndex uint64) error {
	_, err := Do(ctx, i, op, func(r *raft.Raft) raft.IndexFuture {
		switch change {
		case AddNonvoter:
			return r.AddNonvoter(server, NodeAddress(node), configIndex, ChangeTimeout)
		case AddVoter:
			return r.AddVoter(server, NodeAddress(node), configIndex, ChangeTimeout)
		default:
			return r.RemoveServer(server, configIndex, ChangeTimeout)
		}
	})
	return err
}
